//! Limits that plugins want, laid over each other.

use carpel_api::nri::{Field, LinuxCpu, LinuxMemory, LinuxResources};

use super::owners::Owners;

/// Takes `wanted` of a plugin's for a container, into each of `targets`.
///
/// # Errors
/// Another plugin has said it.
pub(super) fn lay_over(
    owners: &mut Owners,
    container: &str,
    plugin: &str,
    wanted: LinuxResources,
    targets: &mut [&mut LinuxResources],
) -> Result<(), String> {
    let mut claim = |field, key: &str| owners.claim(container, field, key, plugin);
    if let Some(memory) = &wanted.memory {
        claim_memory(&mut claim, memory)?;
    }
    if let Some(cpu) = &wanted.cpu {
        claim_cpu(&mut claim, cpu)?;
    }
    for limit in &wanted.hugepage_limits {
        claim(Field::HugepageLimits, &limit.page_size)?;
    }
    for file in wanted.unified.keys() {
        claim(Field::CgroupsUnified, file)?;
    }
    if wanted.blockio_class.is_some() {
        claim(Field::BlockioClass, "")?;
    }
    if wanted.rdt_class.is_some() {
        claim(Field::RdtClass, "")?;
    }
    if wanted.pids.is_some() {
        claim(Field::PidsLimit, "")?;
    }
    for target in targets {
        set(target, &wanted);
    }
    Ok(())
}

type Claim<'a> = &'a mut dyn FnMut(Field, &str) -> Result<(), String>;

fn claim_memory(claim: Claim<'_>, memory: &LinuxMemory) -> Result<(), String> {
    for (said, field) in [
        (memory.limit.is_some(), Field::MemLimit),
        (memory.reservation.is_some(), Field::MemReservation),
        (memory.swap.is_some(), Field::MemSwapLimit),
        (memory.kernel.is_some(), Field::MemKernelLimit),
        (memory.kernel_tcp.is_some(), Field::MemTcpLimit),
        (memory.swappiness.is_some(), Field::MemSwappiness),
        (
            memory.disable_oom_killer.is_some(),
            Field::MemDisableOomKiller,
        ),
        (memory.use_hierarchy.is_some(), Field::MemUseHierarchy),
    ] {
        if said {
            claim(field, "")?;
        }
    }
    Ok(())
}

fn claim_cpu(claim: Claim<'_>, cpu: &LinuxCpu) -> Result<(), String> {
    for (said, field) in [
        (cpu.shares.is_some(), Field::CpuShares),
        (cpu.quota.is_some(), Field::CpuQuota),
        (cpu.period.is_some(), Field::CpuPeriod),
        (cpu.realtime_runtime.is_some(), Field::CpuRealtimeRuntime),
        (cpu.realtime_period.is_some(), Field::CpuRealtimePeriod),
        (!cpu.cpus.is_empty(), Field::CpuSetCpUs),
        (!cpu.mems.is_empty(), Field::CpuSetMems),
    ] {
        if said {
            claim(field, "")?;
        }
    }
    Ok(())
}

fn over<T: Clone>(target: &mut Option<T>, wanted: &Option<T>) {
    if wanted.is_some() {
        target.clone_from(wanted);
    }
}

fn set(target: &mut LinuxResources, wanted: &LinuxResources) {
    if let Some(memory) = &wanted.memory {
        let target = target.memory.get_or_insert_default();
        over(&mut target.limit, &memory.limit);
        over(&mut target.reservation, &memory.reservation);
        over(&mut target.swap, &memory.swap);
        over(&mut target.kernel, &memory.kernel);
        over(&mut target.kernel_tcp, &memory.kernel_tcp);
        over(&mut target.swappiness, &memory.swappiness);
        over(&mut target.disable_oom_killer, &memory.disable_oom_killer);
        over(&mut target.use_hierarchy, &memory.use_hierarchy);
    }
    if let Some(cpu) = &wanted.cpu {
        let target = target.cpu.get_or_insert_default();
        over(&mut target.shares, &cpu.shares);
        over(&mut target.quota, &cpu.quota);
        over(&mut target.period, &cpu.period);
        over(&mut target.realtime_runtime, &cpu.realtime_runtime);
        over(&mut target.realtime_period, &cpu.realtime_period);
        if !cpu.cpus.is_empty() {
            target.cpus.clone_from(&cpu.cpus);
        }
        if !cpu.mems.is_empty() {
            target.mems.clone_from(&cpu.mems);
        }
    }
    for limit in &wanted.hugepage_limits {
        let sizes = &mut target.hugepage_limits;
        sizes.retain(|known| known.page_size != limit.page_size);
        sizes.push(limit.clone());
    }
    target.unified.extend(wanted.unified.clone());
    target.devices.extend(wanted.devices.iter().cloned());
    over(&mut target.blockio_class, &wanted.blockio_class);
    over(&mut target.rdt_class, &wanted.rdt_class);
    over(&mut target.pids, &wanted.pids);
}
