//! What stands in a line of the shell: commands between `;`, each of words between blanks. A word is bytes.
//!
//! Within double quotes blanks and `;` belong to the word. `\xHH` is the byte of these two hexadecimal digits, and `\` takes
//! the meaning from `"`, `\`, `;` and a blank. What a command shows is written so that it reads back.

use std::fmt::Write as _;

/// A command: its words.
pub(super) type Command = Vec<Vec<u8>>;

/// Reads a line. From `#` on, where a command would begin, it is a comment.
pub(super) fn parse(line: &str) -> Result<Vec<Command>, String> {
    let mut reader = Reader::default();
    let mut bytes = line.trim_end_matches(['\r', '\n']).bytes().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'#' if !reader.quoted && !reader.begun && reader.command.is_empty() => break,
            b'"' => (reader.quoted, reader.begun) = (!reader.quoted, true),
            b' ' | b'\t' if !reader.quoted => reader.end_word(),
            b';' if !reader.quoted => reader.end_command(),
            b'\\' => reader.take(escaped(&mut bytes)?),
            byte => reader.take(byte),
        }
    }
    if reader.quoted {
        return Err("a quote is not closed: add \", or write \\\" for one that belongs to a word".to_owned());
    }
    reader.end_command();
    Ok(reader.commands)
}

#[derive(Default)]
struct Reader {
    commands: Vec<Command>,
    command: Command,
    word: Vec<u8>,
    /// A word has begun; it may be empty.
    begun: bool,
    quoted: bool,
}

impl Reader {
    fn take(&mut self, byte: u8) {
        self.begun = true;
        self.word.push(byte);
    }

    fn end_word(&mut self) {
        if std::mem::take(&mut self.begun) {
            self.command.push(std::mem::take(&mut self.word));
        }
    }

    fn end_command(&mut self) {
        self.end_word();
        if !self.command.is_empty() {
            self.commands.push(std::mem::take(&mut self.command));
        }
    }
}

fn escaped(bytes: &mut impl Iterator<Item = u8>) -> Result<u8, String> {
    let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
    match bytes.next() {
        Some(byte @ (b'"' | b'\\' | b';' | b' ')) => Ok(byte),
        Some(b'x') => match (digit(bytes.next()), digit(bytes.next())) {
            (Some(high), Some(low)) => Ok((high * 16 + low) as u8),
            _ => Err("\\x needs two hexadecimal digits: \\x00 to \\xff".to_owned()),
        },
        _ => Err("after \\ stand \", \\, ;, a blank, or x with two hexadecimal digits".to_owned()),
    }
}

/// Bytes for people: printable ASCII as it is, `\\`, and `\xHH`.
pub(super) fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'\\' => text.push_str("\\\\"),
            b' '..=b'~' => text.push(char::from(byte)),
            // A text takes whatever is written.
            byte => drop(write!(text, "\\x{byte:02x}")),
        }
    }
    text
}

/// A word as it can be typed: within quotes where it has to be.
pub(super) fn quoted(word: &[u8]) -> String {
    let shown = printable(word).replace('"', "\\\"");
    if shown.is_empty() || shown.contains([' ', ';', '#', '"']) { format!("\"{shown}\"") } else { shown }
}

/// The first key that does not begin with `prefix`; `None`: there is none.
pub(super) fn behind_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(line: &str) -> Vec<Vec<String>> {
        let show = |command: Command| command.iter().map(|word| printable(word)).collect();
        parse(line).unwrap().into_iter().map(show).collect()
    }

    #[test]
    fn a_line_is_commands_and_a_command_is_words() {
        for (line, expected) in [
            ("", vec![]),
            ("  ;; ; ", vec![]),
            ("status", vec![vec!["status"]]),
            (" set  key1\tvalue1 ;get key1;", vec![vec!["set", "key1", "value1"], vec!["get", "key1"]]),
            (r#"set "a key" "" ;"#, vec![vec!["set", "a key", ""]]),
            (r#"set a"b c"d;"e;f""#, vec![vec!["set", "ab cd"], vec!["e;f"]]),
            (r#"a\ b \;c \"d \\ \x00\xfF\x20"#, vec![vec!["a b", ";c", "\"d", "\\\\", "\\x00\\xff "]]),
            ("get \u{fc} # no comment", vec![vec!["get", "\\xc3\\xbc", "#", "no", "comment"]]),
            ("get a; # a comment; get b", vec![vec!["get", "a"]]),
            ("\"#\" x", vec![vec!["#", "x"]]),
        ] {
            assert_eq!(words(line), expected, "{line}");
        }
    }

    #[test]
    fn what_is_no_line_is_refused_with_its_reason() {
        for (line, why) in [
            ("set \"a", "not closed"),
            ("set a\\", "after \\"),
            ("set \\n", "after \\"),
            ("set \\x", "two hexadecimal digits"),
            ("set \\xg0", "two hexadecimal digits"),
            ("set \"\\x4\"", "two hexadecimal digits"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn behind_a_prefix_comes_the_next_key_of_its_length_or_none() {
        for (prefix, behind) in [
            (&b"a"[..], Some(&b"b"[..])),
            (b"a\xff", Some(b"b")),
            (b"a\x00", Some(b"a\x01")),
            (b"\xff\xff", None),
            (b"", None),
        ] {
            assert_eq!(behind_prefix(prefix).as_deref(), behind, "{prefix:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back_within_quotes(word in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(parse(&quoted(&word)).unwrap(), vec![vec![word.clone()]]);
            let in_quotes = format!("\"{}\"", printable(&word).replace('"', "\\\""));
            prop_assert_eq!(parse(&in_quotes).unwrap(), vec![vec![word]]);
        }

        #[test]
        fn no_line_makes_it_panic(line in "\\PC{0,60}") {
            let _ = parse(&line);
        }
    }
}
