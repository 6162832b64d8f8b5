//! What a supervisor costs: memory, time of a start, speed of the log. Prints it; asserts only limits that
//! hold on a busy machine too. Needs root.

mod pod;

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use carpel_wire::{FdIndex, Output, PidNamespace, Reply, RequestBody, Start};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use pod::*;

/// Sum of a field of smaps_rollup, in kB.
fn memory(pid: u32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn mean_memory(pods: &[(Pod, Daemon)], what: &str) -> u64 {
    let mean = |field| {
        pods.iter()
            .map(|(pod, _)| memory(pod.pid.unwrap(), field))
            .sum::<u64>()
            / pods.len() as u64
    };
    let (pss, rss) = (mean("Pss:"), mean("Rss:"));
    println!(
        "{} supervisors, {what}: PSS {pss} kB, RSS {rss} kB each",
        pods.len()
    );
    pss
}

#[test]
fn fifty_supervisors_are_small() {
    let mut pods: Vec<_> = (0..50).map(|_| Pod::ready(false)).collect();
    // At rest: what was needed to get here has been given back.
    std::thread::sleep(Duration::from_millis(1500));
    let set_up = mean_memory(&pods, "set up");
    let null = File::options().append(true).open("/dev/null").unwrap();
    let mut roots = Vec::new();
    for (_, daemon) in &mut pods {
        let rootfs = Rootfs::new();
        let command = ["sh", "-c", "seq 1 20000; sleep 1000"];
        let mut run = Run::container(1, &rootfs, &command);
        run.log = Some(&null);
        assert!(matches!(daemon.start(&run), Reply::Started { .. }));
        assert_eq!(daemon.run(&Run::exec(2, 1, &["true"])), 0);
        roots.push(rootfs);
    }
    std::thread::sleep(Duration::from_millis(1500));
    let used = mean_memory(&pods, "one container that has logged 100 kB, one exec done");
    for (_, daemon) in &mut pods {
        assert_eq!(daemon.signal(id(1), 9), Reply::Done);
        assert_eq!(daemon.exit(id(1)), 9);
    }
    assert!(set_up <= 64 && used <= 64);
}

#[test]
fn a_start_takes_little_time() {
    let (_pod, mut daemon) = Pod::ready(false);
    let main = Rootfs::new();
    assert!(matches!(
        daemon.start(&Run::container(1, &main, &["sleep", "1000"])),
        Reply::Started { .. }
    ));
    let mut measure = |what: &str, exec: bool| {
        let mut times: Vec<_> = (0..200)
            .map(|_| {
                let rootfs = if exec { None } else { Some(Rootfs::new()) };
                let run = match &rootfs {
                    Some(rootfs) => Run::container(2, rootfs, &["true"]),
                    None => Run::exec(2, 1, &["true"]),
                };
                let begin = Instant::now();
                assert!(matches!(daemon.start(&run), Reply::Started { .. }));
                let started = begin.elapsed();
                daemon.exit(run.id);
                if run.init {
                    daemon.forget(run.id);
                }
                (started, begin.elapsed())
            })
            .collect();
        times.sort();
        println!(
            "{what}: started p50 {:?}, p90 {:?}; exit told p50 {:?}",
            times[100].0, times[180].0, times[100].1
        );
    };
    measure("container", false);
    measure("exec", true);
    let mut times: Vec<_> = (0..20)
        .map(|_| {
            let begin = Instant::now();
            let pod = Pod::ready(false);
            let ready = begin.elapsed();
            drop(pod);
            ready
        })
        .collect();
    times.sort();
    println!("spawn and set up: p50 {:?}", times[10]);
}

/// Time that a process has run, and how much of that in user mode (in steps of 10 ms).
fn cpu_time(pid: u32) -> (Duration, Duration) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    let all = Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap());
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let ticks: u64 = text.split(' ').nth(13).unwrap().parse().unwrap();
    (all, Duration::from_millis(ticks * 10))
}

#[test]
fn the_log_is_fast() {
    const LENGTH: usize = 400 << 20;
    let (pod, mut daemon) = Pod::ready(false);
    let disk = Rootfs::empty();
    let log = File::options()
        .create(true)
        .append(true)
        .open(disk.path("log"))
        .unwrap();
    let rootfs = Rootfs::new();
    let mut block = [b'x'; 100].repeat(1 << 12);
    block
        .iter_mut()
        .skip(99)
        .step_by(100)
        .for_each(|byte| *byte = b'\n');
    let pipe = || pipe_with(PipeFlags::CLOEXEC).unwrap();
    let ((out, writer), (err, _err)) = (pipe(), pipe());
    fcntl_setpipe_size(&out, 256 << 10).unwrap();
    let run = Run::container(1, &rootfs, &["sleep", "1000"]);
    let (plan, null) = (
        run.plan(),
        File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap(),
    );
    let start = Start {
        id: run.id,
        clone_flags: NEWNS,
        pid_namespace: PidNamespace::New,
        target: None,
        cgroup: None,
        plan: FdIndex(0),
        output: Output::Pipes {
            stdout: FdIndex(6),
            stderr: FdIndex(7),
            log: Some(FdIndex(4)),
        },
        stdin: None,
        init: true,
    };
    let null = null.as_fd();
    let fds = [
        plan.as_fd(),
        null,
        null,
        null,
        log.as_fd(),
        rootfs.0.as_fd(),
        out.as_fd(),
        err.as_fd(),
    ];
    assert!(matches!(
        daemon.ask(RequestBody::Start(start), &fds).0,
        Reply::Started { .. }
    ));
    let (begin, cpu) = (Instant::now(), cpu_time(pod.pid.unwrap()));
    let mut writer = File::from(writer);
    let mut written = 0;
    while written < LENGTH {
        writer.write_all(&block).unwrap();
        written += block.len();
    }
    let expected = (written / 100 * 140) as u64;
    while log.metadata().unwrap().len() < expected {
        std::thread::sleep(Duration::from_millis(1));
    }
    let time = begin.elapsed();
    let (all, user) = cpu_time(pod.pid.unwrap());
    let (cpu, user) = (all - cpu.0, user - cpu.1);
    let rate = |time: Duration| (written >> 20) as f64 / time.as_secs_f64();
    println!(
        "100-byte lines: {:.0} MiB/s, {:.0} MiB for each second of CPU, of which {:.0} % in user mode",
        rate(time),
        rate(cpu),
        user.as_secs_f64() / cpu.as_secs_f64() * 100.0,
    );
    let bound = Duration::from_secs_f64((written >> 20) as f64 / 100.0);
    assert!(cpu < patience(bound), "{cpu:?}");
    assert_eq!(log.metadata().unwrap().len(), expected);
    assert_eq!(daemon.signal(id(1), 9), Reply::Done);
    assert_eq!(daemon.exit(id(1)), 9);
}
