use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscallBuilder,
};
#[test]
fn smoke() {
    let start = std::time::Instant::now();
    let profile = super::default_profile(crate::spec::capability::DEFAULT);
    let made = start.elapsed();
    let program = super::compile(&profile).unwrap();
    let compiled = start.elapsed();
    super::compile(&profile).unwrap();
    println!(
        "{made:?} {compiled:?} {:?} {}",
        start.elapsed(),
        program.instructions.len() / 8
    );
}
