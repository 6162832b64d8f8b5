//! Public keys, as tools write them: what a signature is checked with.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256,
    UnparsedPublicKey, VerificationAlgorithm,
};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;

/// A key of one of the kinds that cosign makes or takes.
#[derive(Clone)]
pub(super) struct PublicKey {
    algorithm: &'static dyn VerificationAlgorithm,
    /// In the form that the algorithm wants.
    key: Vec<u8>,
}

/// The kinds of keys, as the contents of their AlgorithmIdentifiers, with what cosign signs by: SHA-256 in any case.
const KINDS: [(&[u8], &dyn VerificationAlgorithm); 4] = [
    // id-ecPublicKey, prime256v1
    (
        b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07",
        &ECDSA_P256_SHA256_ASN1,
    ),
    // id-ecPublicKey, secp384r1
    (
        b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22",
        &ECDSA_P384_SHA256_ASN1,
    ),
    // rsaEncryption, NULL
    (
        b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00",
        &RSA_PKCS1_2048_8192_SHA256,
    ),
    // id-Ed25519
    (b"\x06\x03\x2b\x65\x70", &ED25519),
];
const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;

impl PublicKey {
    /// Reads a key in PEM (`BEGIN PUBLIC KEY`).
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub(super) fn of_pem(text: &[u8]) -> Result<Self, String> {
        let no_pem = |_| "no public key in PEM (BEGIN PUBLIC KEY)".to_owned();
        let der = SubjectPublicKeyInfoDer::from_pem_slice(text).map_err(no_pem)?;
        Self::of_der(&der).ok_or_else(|| {
            "a public key of another kind than ECDSA P-256 or P-384, RSA or Ed25519".to_owned()
        })
    }

    /// Reads a key in PEM that is written in base64 once more.
    ///
    /// # Errors
    /// As [`Self::of_pem`].
    pub(super) fn of_data(text: &str) -> Result<Self, String> {
        let bytes = STANDARD.decode(text);
        Self::of_pem(&bytes.map_err(|_| "not base64".to_owned())?)
    }

    /// Of a SubjectPublicKeyInfo.
    fn of_der(bytes: &[u8]) -> Option<Self> {
        let (info, []) = element(bytes, SEQUENCE)? else {
            return None;
        };
        let (kind, rest) = element(info, SEQUENCE)?;
        let (bits, []) = element(rest, BIT_STRING)? else {
            return None;
        };
        // No bits of the last byte are left out.
        let (0, key) = bits.split_first()? else {
            return None;
        };
        let (_, algorithm) = KINDS.iter().find(|(known, _)| *known == kind)?;
        let key = key.to_vec();
        Some(Self {
            algorithm: *algorithm,
            key,
        })
    }

    /// Whether it is the key that `signature` of `message` was made with.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(self.algorithm, &self.key);
        key.verify(message, signature).is_ok()
    }
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PublicKey")
    }
}

/// The content of the DER element that `bytes` begin with, if it is one of `tag`, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let [actual, first, rest @ ..] = bytes else {
        return None;
    };
    let (length, rest) = match first {
        short @ 0..=0x7f => (usize::from(*short), rest),
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => {
            let (length, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        _ => return None,
    };
    (*actual == tag && length <= rest.len()).then(|| rest.split_at(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::unpack::testing::tool;
    use proptest::prelude::*;

    #[test]
    fn what_openssl_signs_with_each_kind_of_key_is_verified() {
        let dir = tempfile::tempdir().unwrap();
        let openssl = |line: &str, input: &[u8]| {
            tool(
                "openssl",
                &line.split(' ').collect::<Vec<_>>(),
                dir.path(),
                input,
            )
        };
        std::fs::write(dir.path().join("message"), "what is signed").unwrap();
        for kind in [
            "EC -pkeyopt ec_paramgen_curve:P-256",
            "EC -pkeyopt ec_paramgen_curve:P-384",
            "RSA -pkeyopt rsa_keygen_bits:2048",
            "ED25519",
        ] {
            openssl(&format!("genpkey -algorithm {kind} -out key"), b"");
            let pem = openssl("pkey -in key -pubout", b"");
            let hash = if kind == "ED25519" {
                "-rawin"
            } else {
                "-rawin -digest sha256"
            };
            let signature = openssl(&format!("pkeyutl -sign -inkey key {hash} -in message"), b"");
            let key = PublicKey::of_pem(&pem).unwrap();
            assert!(key.verifies(b"what is signed", &signature), "{kind}");
            assert!(!key.verifies(b"what is not signed", &signature), "{kind}");
            assert!(!key.verifies(b"what is signed", &signature[1..]), "{kind}");
            let data = STANDARD.encode(&pem);
            assert!(
                PublicKey::of_data(&data)
                    .unwrap()
                    .verifies(b"what is signed", &signature)
            );
            openssl(&format!("genpkey -algorithm {kind} -out other"), b"");
            let other = PublicKey::of_pem(&openssl("pkey -in other -pubout", b"")).unwrap();
            assert!(!other.verifies(b"what is signed", &signature), "{kind}");
        }
    }

    #[test]
    fn other_keys_and_other_things_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let openssl = |line: &str| {
            tool(
                "openssl",
                &line.split(' ').collect::<Vec<_>>(),
                dir.path(),
                b"",
            )
        };
        openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:secp256k1 -out key");
        let error = PublicKey::of_pem(&openssl("pkey -in key -pubout")).unwrap_err();
        assert!(error.contains("another kind"), "{error}");
        let private = openssl("pkey -in key");
        for bad in [&b""[..], b"text", &private] {
            assert!(
                PublicKey::of_pem(bad)
                    .unwrap_err()
                    .contains("no public key")
            );
        }
        assert_eq!(PublicKey::of_data("?").unwrap_err(), "not base64");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, tag in prop::sample::select(vec![0x30, 0x03])) {
            let _ = element(&bytes, tag);
            let _ = PublicKey::of_der(&bytes);
            let _ = PublicKey::of_der(&[&[0x30, 0x82, 0, 20, 0x30][..], &bytes].concat());
        }
    }
}
