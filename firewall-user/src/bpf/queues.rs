//! Queues that a NIC lacks, although its driver takes native XDP.
//!
//! XDP sends from queues of its own, one for each CPU. Where there is no room for them
//! virtio_net refuses nothing (`virtnet_xdp_set`, since Linux 5.13): what XDP sends shares
//! the queues of the rest, under their locks, and only the kernel's log tells.

use super::sys::{self, Channels};

/// What is to be said of the interface `name` before XDP is attached to it, if anything.
#[must_use]
pub fn remark(name: &str) -> Option<String> {
    let cpus = u32::try_from(aya::util::nr_cpus().ok()?).ok()?;
    of_driver(
        &sys::driver(name).ok()?,
        name,
        sys::channels(name).ok()?,
        cpus,
    )
}

fn of_driver(driver: &str, name: &str, channels: Channels, cpus: u32) -> Option<String> {
    if driver != "virtio_net" {
        return None;
    }
    let Channels { used, most } = channels;
    let wanted = used.saturating_add(cpus);
    if wanted <= most {
        return None;
    }
    let fewer = most.saturating_sub(cpus);
    let remedy = if fewer > 0 {
        format!("`ethtool -L {name} combined {fewer}` before pinhole is attached")
    } else {
        format!("give the virtual machine's NIC {wanted} queues (QEMU: queues={wanted})")
    };
    Some(format!(
        "too few queues: {used} in use and one for each of {cpus} CPUs are more than its {most}, \
         so that the fast path sends under locks, slower; {remedy}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_virtio_nic_without_a_queue_for_each_cpu_is_told_of_with_what_helps() {
        let said = |used, most| of_driver("virtio_net", "eth0", Channels { used, most }, 2);
        assert_eq!(said(2, 4), None);
        assert_eq!(said(1, 3), None);
        let one = said(1, 1).unwrap();
        assert!(one.contains("too few queues: 1 in use"), "{one}");
        assert!(one.contains("queues=3"), "{one}");
        let all = said(4, 4).unwrap();
        assert!(all.contains("`ethtool -L eth0 combined 2`"), "{all}");
        assert!(said(2, 2).unwrap().contains("queues=4"));
    }

    #[test]
    fn nothing_is_said_of_other_devices() {
        let full = Channels { used: 1, most: 1 };
        assert!(of_driver("virtio_net", "eth0", full, 2).is_some());
        assert_eq!(of_driver("e1000", "eth0", full, 2), None);
        assert_eq!(remark("no-such-nic0"), None);
    }
}
