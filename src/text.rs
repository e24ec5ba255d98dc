//! Words of others on our lines. Guests and their programs have a say in some of what is printed
//! (names of metrics, reasons, paths); none of it may move a cursor or reorder what stands beside it.

/// The text on one line: control characters, and those that are invisible or change the direction of
/// writing, become `?`.
pub fn plain(text: &str) -> String {
    let visible = |c: char| !c.is_control() && !is_format(c);
    text.chars()
        .map(|c| if visible(c) { c } else { '?' })
        .collect()
}

/// Zero-width characters, line separators and marks of direction.
fn is_format(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// At most `width` characters; what is longer ends in `…`, or in `~` where only ASCII is shown.
pub fn cut(text: &str, width: usize, ascii: bool) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    if width > 0 {
        short.push(if ascii { '~' } else { '…' });
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_moves_the_cursor_or_the_text_is_left() {
        let hostile = "a\x1b[2J\nb\u{9b}1m\u{202e}c\u{200b}\u{feff}é\t\u{7f}";
        assert_eq!(plain(hostile), "a?[2J?b?1m?c??é??");
    }

    #[test]
    fn long_texts_end_in_a_mark() {
        assert_eq!(cut("abcdef", 6, false), "abcdef");
        assert_eq!(cut("abcdefg", 6, false), "abcde…");
        assert_eq!(cut("abcdefg", 3, true), "ab~");
        assert_eq!(cut("abc", 0, true), "");
    }
}
