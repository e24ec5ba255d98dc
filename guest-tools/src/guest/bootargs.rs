//! What the kernel command line asks of the init.
//!
//! | option | effect |
//! |---|---|
//! | `concertina.run=TEXT` | run it, print `concertina-guest: exit status N`, power off |
//! | `… -- WORD…` | the same, with the words that the kernel passes on to init |
//! | `concertina.start=TEXT` | run it in the background; may be repeated |
//! | `concertina.dhcp=eth0` | ask for an address on this interface; may be repeated |
//! | `concertina.poweroff`, `concertina.reboot` | end as soon as the init is up |
//! | `concertina.console=no` | no shell on the console |
//!
//! `TEXT` is either one word, or quoted as the kernel quotes (`concertina.run="a b"`), and may hold
//! `%XX` for any byte (a double quote is `%22`).

use super::sys::Ending;

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Words, run as they are.
    Words(Vec<String>),
    /// A line, run by the shell where there is one.
    Line(String),
}

/// Everything that the command line asks.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BootOptions {
    /// Run this, then power off.
    pub run: Option<Command>,
    /// Run these beside everything else.
    pub start: Vec<Command>,
    /// Ask for addresses on these interfaces.
    pub dhcp: Vec<String>,
    /// End at once.
    pub end: Option<Ending>,
    /// No shell on the console.
    pub no_console: bool,
}

impl BootOptions {
    /// Reads `/proc/cmdline`.
    pub fn read() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default())
    }

    /// Takes a command line apart. What is not ours is left to the kernel.
    pub fn parse(cmdline: &str) -> Self {
        let mut options = Self::default();
        let mut words = split_words(cmdline).into_iter();
        for word in words.by_ref().take_while(|word| word != "--") {
            let (name, value) = word.split_once('=').unwrap_or((&word, ""));
            match name {
                "concertina.run" => options.run = Some(Command::Line(decode(value))),
                "concertina.start" => options.start.push(Command::Line(decode(value))),
                "concertina.dhcp" => options.dhcp.push(value.to_owned()),
                "concertina.poweroff" => options.end = Some(Ending::PowerOff),
                "concertina.reboot" => options.end = Some(Ending::Reboot),
                "concertina.console" => options.no_console = value == "no",
                _ => {}
            }
        }
        let rest: Vec<String> = words.collect();
        if !rest.is_empty() {
            options.run = Some(Command::Words(rest));
        }
        options
    }
}

/// Splits at white space outside double quotes, as the kernel does; the quotes themselves vanish.
fn split_words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut begun, mut quoted) = (String::new(), false, false);
    for c in text.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                begun = true;
            }
            c if c.is_ascii_whitespace() && !quoted => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            c => {
                word.push(c);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

/// Replaces `%XX` by the byte it stands for; a `%` that is followed by no two hex digits stays.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = match tail {
            [high, low, ..] if *first == b'%' => hex(*high).zip(hex(*low)),
            _ => None,
        };
        if let Some((high, low)) = escaped {
            bytes.push(high << 4 | low);
            rest = tail.get(2..).unwrap_or_default();
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Option<Command> {
        Some(Command::Line(text.into()))
    }

    #[test]
    fn a_quoted_command_keeps_its_spaces() {
        let options =
            BootOptions::parse("console=ttyS0 concertina.run=\"load --cpu 1 --for 5s\" ro");
        assert_eq!(options.run, line("load --cpu 1 --for 5s"));
    }

    #[test]
    fn percent_codes_carry_what_quotes_cannot() {
        let options = BootOptions::parse("concertina.run=echo%20%22a%22%20100%%20%zz%2");
        assert_eq!(options.run, line("echo \"a\" 100% %zz%2"));
    }

    #[test]
    fn words_after_two_dashes_win_and_stay_as_they_are() {
        let options = BootOptions::parse("concertina.run=x -- load --cpu \"a b\" %41 --\n");
        let words = ["load", "--cpu", "a b", "%41", "--"]
            .map(String::from)
            .to_vec();
        assert_eq!(options.run, Some(Command::Words(words)));
    }

    #[test]
    fn a_plain_command_line_asks_nothing() {
        assert_eq!(
            BootOptions::parse("quiet splash panic=-1 --"),
            BootOptions::default()
        );
        assert_eq!(BootOptions::parse(""), BootOptions::default());
    }

    #[test]
    fn endings_and_background_commands_are_known() {
        let options = BootOptions::parse(
            "concertina.start=a concertina.start=b concertina.dhcp=eth1 concertina.reboot",
        );
        assert_eq!(options.dhcp, ["eth1"]);
        assert_eq!(options.end, Some(Ending::Reboot));
        assert_eq!(
            options.start,
            [Command::Line("a".into()), Command::Line("b".into())]
        );
    }
}
