//! Certificates for servers of tests.

use std::path::Path;
use std::process::Command;

/// Makes `ca.pem` and `ca.key`, and `key.pem` and `cert.pem` for the address, in a folder.
///
/// # Panics
/// If openssl fails.
pub fn make(dir: &Path, address: &str) {
    let openssl = |line: &str| {
        let output = Command::new("openssl")
            .args(line.split(' '))
            .current_dir(dir)
            .output()
            .expect("openssl is installed");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {line}: {text}");
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
    openssl(&format!(
        "req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=test"
    ));
    openssl(&format!(
        "req -x509 {key} -keyout key.pem -out cert.pem -subj /CN=server -CA ca.pem -CAkey ca.key -addext subjectAltName=IP:{address} -addext basicConstraints=CA:FALSE"
    ));
}
