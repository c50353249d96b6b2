//! What templates expect of Python: `json.dumps`, `strftime`, `raise_exception`, and transformers' own block tag.

use std::io;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// A day of the Gregorian calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Date {
    pub(super) year: u32,
    pub(super) month: u32,
    pub(super) day: u32,
}

impl Date {
    /// Reads `YYYY-MM-DD`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-').map(|part| {
            let digits = part.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| part.parse::<u32>().ok()).flatten().map(|number| (part.len(), number))
        });
        let ((4, year), (2, month), (2, day), None) =
            (parts.next()??, parts.next()??, parts.next()??, parts.next())
        else {
            return None;
        };
        let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        let days = match month {
            2 => 28 + u32::from(leap),
            4 | 6 | 9 | 11 => 30,
            1..=12 => 31,
            _ => return None,
        };
        (1..=days).contains(&day).then_some(Self { year, month, day })
    }

    /// `strftime` at midnight, for the directives that make sense of a day.
    pub(super) fn format(self, format: &str) -> Result<String, Error> {
        let Self { year, month, day } = self;
        let month_name = MONTHS[month as usize - 1];
        let weekday = WEEKDAYS[self.weekday()];
        let mut text = String::new();
        let mut chars = format.chars();
        while let Some(char) = chars.next() {
            if char != '%' {
                text.push(char);
                continue;
            }
            let mut directive = chars.next();
            // glibc: no zero in front.
            let bare = directive == Some('-');
            if bare {
                directive = chars.next();
            }
            let two = |number: u32| if bare { number.to_string() } else { format!("{number:02}") };
            match directive {
                Some('Y') => text.push_str(&format!("{year:04}")),
                Some('y') => text.push_str(&two(year % 100)),
                Some('m') => text.push_str(&two(month)),
                Some('d') => text.push_str(&two(day)),
                Some('B') => text.push_str(month_name),
                Some('b' | 'h') => text.push_str(&month_name[..3]),
                Some('A') => text.push_str(weekday),
                Some('a') => text.push_str(&weekday[..3]),
                Some('F') => text.push_str(&format!("{year:04}-{month:02}-{day:02}")),
                Some('H' | 'M' | 'S') => text.push_str(&two(0)),
                Some('%') => text.push('%'),
                other => {
                    let reason =
                        format!("strftime_now does not know the directive %{}", other.unwrap_or(' '));
                    return Err(Error::new(ErrorKind::InvalidOperation, reason));
                }
            }
        }
        Ok(text)
    }

    /// 0 is Monday (Sakamoto's method).
    fn weekday(self) -> usize {
        const SHIFT: [u32; 12] = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4];
        // Years repeat after 400; the sum must not fall below zero.
        let year = self.year + 400 - u32::from(self.month < 3);
        let sunday_based =
            (year + year / 4 - year / 100 + year / 400 + SHIFT[self.month as usize - 1] + self.day) % 7;
        (sunday_based as usize + 6) % 7
    }
}

/// How a template refuses a conversation.
pub(super) fn raise_exception(reason: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, reason))
}

/// `json.dumps` with `ensure_ascii=False`; `indent` as there. (The engine's own filter escapes for HTML.)
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Accepted for compatibility: keys come out in the value's own order, characters unescaped.
    let _: Option<bool> = options.get("ensure_ascii")?;
    let _: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let json = to_json(value)?;
    let bytes = match indent {
        Some(spaces) => {
            write_json(&json, PrettyFormatter::with_indent(" ".repeat(spaces.min(16)).as_bytes()))
        }
        None => write_json(&json, SpacedFormatter(CompactFormatter)),
    };
    let text = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let text = text.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "value has no JSON form"))?;
    Ok(Value::from_safe_string(text))
}

fn to_json(value: &Value) -> Result<serde_json::Value, Error> {
    let items =
        |value: &Value| value.try_iter()?.map(|item| to_json(&item)).collect::<Result<Vec<_>, Error>>();
    Ok(match value.kind() {
        ValueKind::None => serde_json::Value::Null,
        ValueKind::Bool => value.is_true().into(),
        ValueKind::Number => match i64::try_from(value.clone()) {
            Ok(number) if value.is_integer() => number.into(),
            _ => f64::try_from(value.clone())?.into(),
        },
        ValueKind::String => value.as_str().unwrap_or_default().into(),
        ValueKind::Seq | ValueKind::Iterable => items(value)?.into(),
        ValueKind::Map => {
            let mut map = serde_json::Map::new();
            for key in value.try_iter()? {
                map.insert(key.to_string(), to_json(&value.get_item(&key)?)?);
            }
            map.into()
        }
        other => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("a value of kind {other} has no JSON form"),
            ));
        }
    })
}

fn write_json(json: &serde_json::Value, formatter: impl Formatter) -> serde_json::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    serde::Serialize::serialize(json, &mut Serializer::with_formatter(&mut bytes, formatter))?;
    Ok(bytes)
}

/// Python's separators: `", "` and `": "`.
struct SpacedFormatter(CompactFormatter);

impl Formatter for SpacedFormatter {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)?;
        writer.write_all(b" ")
    }
}

/// Turns transformers' `{% generation %}` … `{% endgeneration %}` (marks for training, no output) into a block that
/// always shows its body.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let inner = &rest[start + 2..start + length];
        let word = inner.trim_matches(['-', '+', ' ', '\t', '\r', '\n']);
        out.push_str(&rest[..start + 2]);
        match word {
            "generation" => out.push_str(&inner.replace(word, "if true")),
            "endgeneration" => out.push_str(&inner.replace(word, "endif")),
            _ => out.push_str(inner),
        }
        rest = &rest[start + length..];
    }
    out.push_str(rest);
    out
}

/// The error with what caused it, on one line.
pub(super) fn full_reason(error: &Error) -> String {
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        reason.push_str(": ");
        reason.push_str(&cause.to_string());
        source = cause.source();
    }
    reason
}
