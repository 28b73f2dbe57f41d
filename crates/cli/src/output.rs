//! What people read: lines, tables, sizes; and JSON for programs.

use anyhow::Result;
use comfy_table::{Table, presets};
use serde_json::Value;
use std::io::{self, ErrorKind, Write};

/// Writes a line to standard output. A reader that left (`| head`) is no error.
pub(crate) fn line(text: impl std::fmt::Display) -> Result<()> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// How something goes on, or why it failed, for people, on standard error.
pub(crate) fn note(text: impl std::fmt::Display) {
    // Nobody is left to tell if this fails.
    let _ = writeln!(io::stderr(), "chronofs: {}", one_line(&text.to_string()));
}

/// The same without our name before it: what scripts look for.
pub(crate) fn plain_note(text: impl std::fmt::Display) {
    // Nobody is left to tell if this fails.
    let _ = writeln!(io::stderr(), "{}", one_line(&text.to_string()));
}

/// What failed of several things that go on, for people, on standard error.
pub(crate) fn error(text: impl std::fmt::Display) {
    // Nobody is left to tell if this fails.
    let _ = writeln!(io::stderr(), "ERROR: {}", one_line(&text.to_string()));
}

/// A warning, for people, on standard error.
pub(crate) fn warn(text: impl std::fmt::Display) {
    note(format_args!("warning: {text}"));
}

/// Names and paths may hold line breaks and commands to a terminal; in a message they are only shown.
fn one_line(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

/// A text as part of a path or query.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// A column of a table: its title and the field it shows, or the path to it: `/in/this`.
pub(crate) type Column = (&'static str, &'static str);

/// Rows under titles.
pub(crate) fn table(columns: &[Column], rows: &[Value]) -> String {
    let mut table = plain();
    table.set_header(columns.iter().map(|(title, _)| *title));
    for row in rows {
        table.add_row(columns.iter().map(|(_, field)| cell(field, at(row, field))));
    }
    trimmed(&table)
}

/// One thing: a line per field.
pub(crate) fn card(columns: &[Column], item: &Value) -> String {
    let mut table = plain();
    for (title, field) in columns {
        table.add_row([(*title).to_owned(), cell(field, at(item, field))]);
    }
    trimmed(&table)
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

fn trimmed(table: &Table) -> String {
    let lines: Vec<_> = table.lines().map(|line| line.trim().to_owned()).collect();
    lines.join("\n")
}

fn at<'a>(item: &'a Value, field: &str) -> &'a Value {
    if field.starts_with('/') { item.pointer(field).unwrap_or(&Value::Null) } else { &item[field] }
}

fn cell(field: &str, value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(|item| cell("", item)).collect::<Vec<_>>().join(", "),
        Value::Number(n) if field.ends_with("bytes") || field == "block_size" => {
            n.as_u64().map_or_else(|| n.to_string(), show_size)
        }
        other => other.to_string(),
    }
}

const UNITS: [(&str, u32); 5] = [("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

/// A number of bytes in the largest unit that is not smaller, with one digit unless it is whole.
pub(crate) fn show_size(bytes: u64) -> String {
    for (unit, bits) in UNITS {
        if bytes >> bits > 0 {
            let whole = bytes.is_multiple_of(1 << bits);
            #[allow(clippy::cast_precision_loss)] // shown with one digit
            let scaled = bytes as f64 / (1u64 << bits) as f64;
            return if whole { format!("{} {unit}", bytes >> bits) } else { format!("{scaled:.1} {unit}") };
        }
    }
    format!("{bytes} B")
}

/// Reads `4MiB`, `4M`, `512K`, `1000`.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || format!("'{text}' is not a size: write a whole number with K, M, G, T or P (KiB, MiB, ...)");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let unit = unit.trim_start();
    let found = UNITS.iter().find(|(name, _)| unit == *name || unit == &name[..1]);
    match (unit, found) {
        ("" | "B", _) => Ok(number),
        (_, Some((_, bits))) => number.checked_mul(1 << bits).ok_or_else(bad),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sizes_read_back_as_shown() {
        for (text, bytes) in
            [("0", 0), ("1000", 1000), ("4MiB", 4 << 20), ("4M", 4 << 20), ("1 GiB", 1 << 30)]
        {
            assert_eq!(parse_size(text), Ok(bytes));
            assert_eq!(parse_size(&show_size(bytes)), Ok(bytes), "{}", show_size(bytes));
        }
        assert_eq!(show_size(1_500_000), "1.4 MiB");
        for bad in ["", "M", "4MB", "4m", "-1", "1.5G", "99999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_table_lines_up_and_shows_nothing_as_a_dash() {
        let rows = [
            json!({"name": "a", "block_size": 4 << 20, "ro": true, "in": ["x", "y"]}),
            json!({"name": "longer", "block_size": null, "ro": false, "in": []}),
        ];
        let columns = [("NAME", "name"), ("BLOCK", "block_size"), ("READ-ONLY", "ro"), ("IN", "in")];
        let expected = "\
NAME    BLOCK  READ-ONLY  IN
a       4 MiB  yes        x, y
longer  -      no         -";
        assert_eq!(table(&columns, &rows), expected);
        assert_eq!(card(&columns[..2], &rows[0]), "NAME   a\nBLOCK  4 MiB");
    }
}
