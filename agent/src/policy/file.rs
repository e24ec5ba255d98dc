//! Reading a policy file's text: TOML into [`PolicyFile`], with one sentence when it cannot be read.

use concertina_api::policy::PolicyFile;

/// Reads the text of a `--policy` file. The error names the line.
pub fn read_policy(text: &str) -> Result<PolicyFile, String> {
    toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map_or(1, |before| before.matches('\n').count() + 1);
        let message = error.message().replace('\n', ", ");
        format!("Policy file, line {line}: {message}")
    })
}

#[cfg(test)]
mod tests {
    use concertina_api::policy::{Policy, Sources};

    use super::*;

    #[test]
    fn a_policy_file_and_its_rules_are_the_same_policy() {
        let text = r#"
            shrink_window = "30s"
            reversals_per_hour = 6
            [bounds]
            cpus   = { min = 1, max = 4 }
            memory = { min = "512M", max = "4G" }
            disk   = { min = "10M,500iops", max = "100M,5000iops" }
            net    = { min = "80mbit", max = "800mbit" }
            [[threshold]]
            metric = "disk"
            above = "80%"
            add = { disk.mbps = 20 }
            [[threshold]]
            metric = "net.mbps"
            below = 40
            remove = { net.mbps = 50 }
            [[threshold]]
            metric = "io.pressure"
            above = "30%"
            add = { percent = 25, of = "disk.iops" }
            [[threshold]]
            metric = "cpu"
            above  = "75%"
            for    = "5s"
            add    = { cpus = 1 }
            cooldown = "10s"
            [[threshold]]
            metric = "memory.available"
            below = "64M"
            datapoints = "3/5"
            period = "500ms"
            add = { percent = 25 }
            [[threshold]]
            metric = "io.pressure"
            above = 40
            set = { memory = "2G" }
            missing = "ignore"
            [[target]]
            metric = "cpu"
            level = "60%"
        "#;
        let from_file = read_policy(text).unwrap().into_policy(None, None).unwrap();
        let rules = [
            "disk > 80%: +20 disk.mbps",
            "net.mbps < 40: -50 net.mbps",
            "io.pressure > 30%: +25% disk.iops",
            "cpu > 75% for 5s: +1 cpu, cooldown 10s",
            "memory.available < 64M 3 of 5 every 500ms: +25%",
            "io.pressure > 40%: = 2G, missing ignore",
            "target cpu 60%",
            "set shrink_window 30s",
            "set reversals_per_hour 6",
        ];
        let rates = (
            "10M,500iops..100M,5000iops".parse().ok(),
            "80mbit..800mbit".parse().ok(),
        );
        assert_eq!((from_file.io.disk, from_file.io.net), rates);
        let mut from_rules = Policy::new(from_file.bounds);
        from_rules.io = from_file.io;
        rules
            .iter()
            .for_each(|rule| from_rules.scale(rule).unwrap());
        assert_eq!(from_file, from_rules);
        assert_eq!(from_rules.check(&Sources::all()), Ok(()));
        let json = serde_json::to_string(&from_rules).unwrap();
        assert_eq!(serde_json::from_str::<Policy>(&json).unwrap(), from_rules);
    }

    #[test]
    fn a_wrong_policy_file_is_refused_with_the_place() {
        let refused = |text: &str| {
            let bounds = (
                Some("1..4".parse().unwrap()),
                Some("256M..1G".parse().unwrap()),
            );
            let result = read_policy(text).and_then(|file| {
                file.into_policy(bounds.0, bounds.1)
                    .map_err(|e| e.to_string())
            });
            result.unwrap_err()
        };
        let threshold = |body: &str| format!("[[threshold]]\n{body}");
        for (text, words) in [
            (
                "shrink_windw = \"5s\"".to_owned(),
                vec!["line 1", "shrink_windw"],
            ),
            ("\n\nperiod = ".to_owned(), vec!["line 3"]),
            (
                "period = \"1ms\"".to_owned(),
                vec!["period", "'1ms'", "100ms"],
            ),
            (
                "[bounds]\ncpus = { min = 2, max = 4 }".to_owned(),
                vec!["1..4", "2..4", "cpus"],
            ),
            (
                threshold("metric = \"cpuu\"\nabove = 5\nadd = { cpus = 1 }"),
                vec!["number 1", "'cpu'"],
            ),
            (
                threshold("metric = \"cpu\"\nabove = \"75\"\nadd = { cpus = 1 }"),
                vec!["'75'", "75%"],
            ),
            (
                threshold("metric = \"cpu\"\nadd = { cpus = 1 }"),
                vec!["level", "above"],
            ),
            (
                threshold("metric = \"cpu\"\nabove = 5"),
                vec!["exactly one of add, remove, set"],
            ),
            (
                "[bounds]\ndisk = { min = \"10M\", max = \"fast\" }".to_owned(),
                vec!["line 2", "'fast'"],
            ),
            (
                "[bounds]\nnet = { min = \"10M\", max = \"9iops\" }".to_owned(),
                vec!["Bounds of net", "the same"],
            ),
            (
                threshold("metric = \"net\"\nabove = 5\nadd = { net.mbps = 1, net.pps = 3 }"),
                vec!["exactly one of"],
            ),
            (
                threshold("metric = \"cpu\"\nabove = 5\nadd = { percent = 3, of = \"disks\" }"),
                vec!["'disks'", "disk.mbps"],
            ),
            (
                threshold("metric = \"cpu\"\nabove = 5\nadd = { cpus = 1, percent = 3 }"),
                vec!["exactly one of"],
            ),
            (
                threshold("metric = \"cpu\"\nabove = 5\ndatapoints = \"5/3\"\nadd = { cpus = 1 }"),
                vec!["datapoints '5/3'"],
            ),
            (
                threshold(
                    "metric = \"cpu\"\nabove = 5\nadd = { cpus = 1 }\nfor = \"1s\"\ndatapoints = \"1/3\"",
                ),
                vec!["not both"],
            ),
        ] {
            let error = refused(&text);
            for word in words {
                assert!(error.contains(word), "'{word}' is not in: {error}");
            }
        }
    }
}
