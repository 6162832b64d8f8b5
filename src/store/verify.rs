//! Comparing layers with what was unpacked, and setting damaged ones aside.
//!
//! A layer's tar stream is made again from its folder and its skeleton, and hashed: every byte of every file is compared. What
//! is not compared are the owners, modes and names in the folder, for the stream has these from the skeleton.

use std::fs::File;
use std::io::{self, Write};

use super::blobs::{Digest, Hash, read_some};
use super::layers::{LayerId, LayerStore, SKELETON};
use super::record;
use super::unpack::{RecreateError, Tree, recreate};

/// Bytes that are read at once.
const PIECE: usize = 256 << 10;

/// How a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    Sound,
    /// It cannot be told, for this reason.
    Unknown(String),
    /// This is wrong with it.
    Damaged(String),
}

/// Why a layer's tar stream cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Nothing was kept of it.
    #[error("its tar stream was not kept: an older carpel unpacked it, or it has a file twice")]
    NotKept,
    #[error(transparent)]
    Recreate(#[from] RecreateError),
}

impl LayerStore {
    /// Writes a layer's tar stream. That it is the right one is for the caller to check by its digest.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn write_stream(
        &self,
        id: LayerId,
        out: &mut dyn Write,
        proceed: &dyn Fn() -> bool,
    ) -> Result<(), StreamError> {
        let damaged = |what: &str, error: io::Error| {
            RecreateError::Damaged(format!("{what} of layer {id}: {error}"))
        };
        let files = self.path(id);
        let tree = Tree::open(&files).map_err(|error| damaged("the files", error))?;
        let skeleton = match File::open(files.with_file_name(SKELETON)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StreamError::NotKept);
            }
            opened => opened.map_err(|error| damaged("what is kept of the tar stream", error))?,
        };
        Ok(recreate(skeleton, &tree, out, proceed)?)
    }

    /// The length of a layer's tar stream, which is the one of the diff id `diff`.
    ///
    /// # Errors
    /// [`StreamError`]; it is damaged if the stream is another one.
    pub fn measure_stream(
        &self,
        id: LayerId,
        diff: Digest,
        proceed: &dyn Fn() -> bool,
    ) -> Result<u64, StreamError> {
        let mut hash = Hash::default();
        self.write_stream(id, &mut hash, proceed)?;
        let (actual, length) = hash.finish();
        match actual == diff {
            true => Ok(length),
            false => {
                let text = "the content of a file is not what was unpacked".to_owned();
                Err(RecreateError::Damaged(text).into())
            }
        }
    }

    /// Compares a layer with what was unpacked. Takes as long as reading it.
    ///
    /// # Errors
    /// `proceed` said no.
    pub fn verify(
        &self,
        id: LayerId,
        diff: Digest,
        proceed: &dyn Fn() -> bool,
    ) -> Result<Condition, RecreateError> {
        match self.measure_stream(id, diff, proceed) {
            Ok(_) => Ok(Condition::Sound),
            Err(error @ StreamError::NotKept) => Ok(Condition::Unknown(error.to_string())),
            Err(StreamError::Recreate(RecreateError::Damaged(what))) => {
                Ok(Condition::Damaged(what))
            }
            Err(StreamError::Recreate(error)) => Err(error),
        }
    }

    /// Compares a file that is a layer by itself with what was written. Takes as long as reading it.
    ///
    /// # Errors
    /// `proceed` said no.
    pub fn verify_file(
        &self,
        name: &str,
        digest: Digest,
        proceed: &dyn Fn() -> bool,
    ) -> Result<Condition, RecreateError> {
        let path = self.path(LayerId::of_file(name, digest));
        let opened = Tree::open(&path).and_then(|tree| tree.regular_file(name.as_bytes()));
        let mut file = match opened {
            Ok(file) => file,
            Err(error) => return Ok(Condition::Damaged(format!("file {name:?}: {error}"))),
        };
        let (mut hash, mut buffer) = (Hash::default(), vec![0; PIECE]);
        loop {
            if !proceed() {
                return Err(RecreateError::Cancelled);
            }
            match read_some(&mut file, &mut buffer) {
                Ok(0) => break,
                Ok(length) => hash.write_all(&buffer[..length]).unwrap_or_default(),
                Err(error) => return Ok(Condition::Damaged(format!("file {name:?}: {error}"))),
            }
        }
        Ok(match hash.finish().0 == digest {
            true => Condition::Sound,
            false => Condition::Damaged(format!("file {name:?} is not what was pulled")),
        })
    }

    /// Moves a layer to where damaged things are kept: it is the store's no more, and containers that run on it keep it.
    ///
    /// # Errors
    /// As `rename(2)`.
    pub fn quarantine(&self, id: LayerId) -> io::Result<()> {
        let mut state = self.lock();
        if state.is_claimed(id) {
            let text = "a pull or import is about to use it: try again";
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
        }
        let folder = self.folder.join(id.0.hex());
        match record::quarantine(&folder, &self.quarantine) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            moved => moved?,
        }
        state.layers.remove(&id);
        Ok(())
    }
}
