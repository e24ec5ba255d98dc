//! Limits on I/O that have bounds: the devices start at the lower one.

use concertina_api::disk::DiskSpec;
use concertina_api::net::{NetRates, NetWish};
use concertina_api::policy::IoBounds;
use concertina_api::{IoRate, RateBounds};

use super::LaunchError;

/// Gives devices the limits that they start with.
///
/// # Errors
/// There is no device that bounds could be of, or one has a limit of its own as well.
pub fn put(
    bounds: &IoBounds,
    disks: &mut [DiskSpec],
    nets: &mut [NetWish],
) -> Result<(), LaunchError> {
    if let Some(bounds) = bounds.disk {
        let own = disks.iter().map(|disk| disk.rate);
        check("disk", "--disk", bounds, own)?;
        disks.iter_mut().for_each(|disk| disk.rate = bounds.min());
    }
    if let Some(bounds) = bounds.net {
        let own = nets.iter().flat_map(|net| [net.rates.rx, net.rates.tx]);
        check("network", "--net", bounds, own)?;
        let rates = NetRates {
            rx: bounds.min(),
            tx: bounds.min(),
        };
        nets.iter_mut().for_each(|net| net.rates = rates);
    }
    Ok(())
}

fn check(
    what: &str,
    option: &str,
    bounds: RateBounds,
    own: impl Iterator<Item = IoRate>,
) -> Result<(), LaunchError> {
    let mut devices = 0;
    for rate in own {
        devices += 1;
        if !rate.is_unlimited() {
            return Err(LaunchError::Request(format!(
                "A {what} has the limit {rate} and its limits have the bounds {bounds}: leave rate= \
                 out of {option}, or the bounds"
            )));
        }
    }
    if devices == 0 {
        return Err(LaunchError::Request(format!(
            "Bounds {bounds} of a {what} rate are of no use without a {what}: add {option}, or leave \
             them out"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(disks: &[&str], nets: &[&str]) -> Result<(Vec<DiskSpec>, Vec<NetWish>), String> {
        let bounds = IoBounds {
            disk: "10M..100M".parse().ok(),
            net: "80mbit..800mbit".parse().ok(),
        };
        let mut disks: Vec<DiskSpec> = disks.iter().map(|text| text.parse().unwrap()).collect();
        let mut nets: Vec<NetWish> = nets.iter().map(|text| text.parse().unwrap()).collect();
        match put(&bounds, &mut disks, &mut nets) {
            Ok(()) => Ok((disks, nets)),
            Err(error) => {
                assert!(error.is_usage());
                Err(error.to_string())
            }
        }
    }

    #[test]
    fn every_device_starts_at_the_lower_bound() {
        let (disks, nets) = verdict(&["a", "b"], &["tap"]).unwrap();
        assert!(disks.iter().all(|disk| disk.rate == "10M".parse().unwrap()));
        let low = "80mbit".parse().unwrap();
        assert_eq!((nets[0].rates.rx, nets[0].rates.tx), (low, low));
    }

    #[test]
    fn bounds_without_devices_or_beside_another_limit_are_refused() {
        for (disks, nets, word) in [
            (&[][..], &["tap"][..], "without a disk: add --disk"),
            (&["a"], &[], "without a network: add --net"),
            (&["a", "b,rate=5M"], &["tap"], "limit 5M"),
            (&["a"], &["tap,tx-rate=5M"], "leave rate= out of --net"),
        ] {
            let error = verdict(disks, nets).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
