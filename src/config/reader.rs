//! Walks a parsed TOML document and collects every problem on the way.
//!
//! A [`Section`] is one table with the path that leads to it. Each accessor of a [`Reader`] gives a value that
//! is valid, or none after it noted the problem with its line: so a caller reads all keys first, and gives up
//! only then.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Problem, Problems, suggest};

/// A value and where it stands in the text.
#[derive(Debug, Clone)]
pub(super) struct At<T> {
    pub value: T,
    pub span: Range<usize>,
}

/// An item of a list that may be either.
pub(super) enum Item<'t> {
    Text(At<&'t str>),
    Table(Section<'t>),
}

/// The text and the problems found in it so far.
pub(super) struct Reader<'t> {
    text: &'t str,
    directory: PathBuf,
    problems: RefCell<Vec<Problem>>,
}

/// One table of the document.
#[derive(Clone)]
pub(super) struct Section<'t> {
    /// The keys that lead here, joined by dots.
    pub path: String,
    /// Where the table starts.
    pub span: Range<usize>,
    table: &'t DeTable<'t>,
}

impl<'t> Section<'t> {
    /// The whole document.
    pub(super) fn root(document: &'t Spanned<DeTable<'t>>) -> Self {
        Self {
            path: String::new(),
            span: 0..0,
            table: document.get_ref(),
        }
    }

    /// `key` with the path that leads to it.
    pub(super) fn key(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// Whether `key` is there.
    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Whether `key` is there and a table.
    pub(super) fn is_table(&self, key: &str) -> bool {
        self.get(key)
            .is_some_and(|value| matches!(value.get_ref(), DeValue::Table(_)))
    }

    /// Where the value of `key` stands; where the table starts if it is not there.
    pub(super) fn span_of(&self, key: &str) -> Range<usize> {
        self.get(key).map_or(self.span.clone(), Spanned::span)
    }

    /// Where item `index` of the list at `key` stands; where the table starts if it is not there.
    pub(super) fn span_of_item(&self, key: &str, index: usize) -> Range<usize> {
        let item = self
            .get(key)
            .and_then(|list| list.get_ref().as_array()?.get(index));
        item.map_or(self.span.clone(), Spanned::span)
    }

    /// The table at `key`, if there is one.
    pub(super) fn table(&self, key: &str) -> Option<Self> {
        let value = self.get(key)?;
        Self::of(value, self.key(key))
    }

    /// Table `index` of the list at `key`, if there is one.
    pub(super) fn item(&self, key: &str, index: usize) -> Option<Self> {
        let value = self.get(key)?.get_ref().as_array()?.get(index)?;
        Self::of(value, format!("{}[{index}]", self.key(key)))
    }

    /// Its keys, each with where it stands.
    pub(super) fn names(&self) -> Vec<At<&'t str>> {
        let named = |name: &'t Spanned<_>| At {
            value: AsRef::<str>::as_ref(name.get_ref()),
            span: name.span(),
        };
        self.table.keys().map(named).collect()
    }

    /// `value` as a table that `path` leads to, if it is one.
    fn of(value: &'t Spanned<DeValue<'t>>, path: String) -> Option<Self> {
        Some(Self {
            path,
            span: value.span(),
            table: value.get_ref().as_table()?,
        })
    }

    fn get(&self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.table.get(key)
    }
}

impl<'t> Reader<'t> {
    /// A reader of `text`, whose relative paths start at `directory`.
    pub(super) fn new(text: &'t str, directory: &Path) -> Self {
        Self {
            text,
            directory: directory.to_owned(),
            problems: RefCell::default(),
        }
    }

    /// The problems, once all is read.
    pub(super) fn into_problems(self, file: &Path) -> Option<Problems> {
        let list = self.problems.into_inner();
        (!list.is_empty()).then(|| Problems::new(file, list))
    }

    /// Notes a problem of `key` at `span`.
    pub(super) fn problem(
        &self,
        span: &Range<usize>,
        key: impl Into<String>,
        cause: impl Display,
        remedy: impl Display,
    ) {
        self.problems.borrow_mut().push(Problem {
            line: Some(line_of(self.text, span.start)),
            key: key.into(),
            cause: cause.to_string(),
            remedy: remedy.to_string(),
        });
    }

    /// Notes each key of `section` that is not `known`.
    pub(super) fn known_keys(&self, section: &Section<'t>, known: &[&str]) {
        for key in section.table.keys() {
            let name = key.get_ref();
            if !known.contains(&name.as_ref()) {
                self.problem(
                    &key.span(),
                    section.key(name),
                    "unknown key",
                    suggest(name, known.iter().copied()),
                );
            }
        }
    }

    /// The tables under `key`, each with the span of its name: `[key.NAME]`.
    pub(super) fn tables(
        &self,
        section: &Section<'t>,
        key: &str,
    ) -> Vec<(At<&'t str>, Section<'t>)> {
        let Some(outer) = self.table(section, key) else {
            return Vec::new();
        };
        let names = outer.names().into_iter();
        names
            .filter_map(|name| Some((name.clone(), self.table(&outer, name.value)?)))
            .collect()
    }

    /// The table at `key`, if it is there.
    pub(super) fn table(&self, section: &Section<'t>, key: &str) -> Option<Section<'t>> {
        let value = section.get(key)?;
        self.as_table(value, section.key(key))
    }

    /// The inline tables in the list at `key`, none if it is absent.
    pub(super) fn table_list(&self, section: &Section<'t>, key: &str) -> Vec<Section<'t>> {
        self.list(section, key)
            .iter()
            .enumerate()
            .filter_map(|(index, item)| {
                self.as_table(item, format!("{}[{index}]", section.key(key)))
            })
            .collect()
    }

    /// The texts and tables in the list at `key`, which is to have nothing else.
    pub(super) fn mixed_list(
        &self,
        section: &Section<'t>,
        key: &str,
        expected: &str,
    ) -> Vec<Item<'t>> {
        let list = self.list(section, key).iter().enumerate();
        list.filter_map(|(index, value)| {
            let path = format!("{}[{index}]", section.key(key));
            match value.get_ref() {
                DeValue::String(_) => self.as_text(value, path).map(Item::Text),
                DeValue::Table(_) => self.as_table(value, path).map(Item::Table),
                _ => {
                    self.wrong_type(value, path, expected, "\"…\" or { … }");
                    None
                }
            }
        })
        .collect()
    }

    /// The text at `key`, if it is there.
    pub(super) fn text(&self, section: &Section<'t>, key: &str) -> Option<At<&'t str>> {
        self.as_text(section.get(key)?, section.key(key))
    }

    /// The texts in the list at `key`, none if it is absent.
    pub(super) fn text_list(&self, section: &Section<'t>, key: &str) -> Vec<At<&'t str>> {
        self.list(section, key)
            .iter()
            .enumerate()
            .filter_map(|(index, item)| {
                self.as_text(item, format!("{}[{index}]", section.key(key)))
            })
            .collect()
    }

    /// The text at `key`, which must be there.
    pub(super) fn required(
        &self,
        section: &Section<'t>,
        key: &str,
        example: &str,
    ) -> Option<At<&'t str>> {
        if section.get(key).is_none() {
            self.missing(section, key, example);
        }
        self.text(section, key)
    }

    /// Notes that `section` lacks `key`; `example` is what a person might write.
    pub(super) fn missing(&self, section: &Section<'t>, key: &str, example: &str) {
        self.problem(
            &section.span,
            section.key(key),
            "missing",
            format!("write {key} = {example}"),
        );
    }

    /// The text at `key` as a `T`, if it is there and valid.
    pub(super) fn parsed<T>(&self, section: &Section<'t>, key: &str, remedy: &str) -> Option<At<T>>
    where
        T: FromStr<Err: Display>,
    {
        let text = self.text(section, key)?;
        self.parse(&text, section.key(key), remedy)
    }

    /// `text` as a `T`, if valid.
    pub(super) fn parse<T>(&self, text: &At<&str>, key: String, remedy: &str) -> Option<At<T>>
    where
        T: FromStr<Err: Display>,
    {
        match text.value.parse() {
            Ok(value) => Some(At {
                value,
                span: text.span.clone(),
            }),
            Err(error) => {
                self.problem(&text.span, key, error, remedy);
                None
            }
        }
    }

    /// The integer at `key`, if it is there.
    pub(super) fn integer(&self, section: &Section<'t>, key: &str) -> Option<At<i64>> {
        self.as_integer(section.get(key)?, section.key(key))
    }

    /// The integers in the list at `key`, none if it is absent.
    pub(super) fn integer_list(&self, section: &Section<'t>, key: &str) -> Vec<At<i64>> {
        self.list(section, key)
            .iter()
            .enumerate()
            .filter_map(|(index, item)| {
                self.as_integer(item, format!("{}[{index}]", section.key(key)))
            })
            .collect()
    }

    fn as_integer(&self, value: &Spanned<DeValue<'t>>, key: String) -> Option<At<i64>> {
        let number = value
            .get_ref()
            .as_integer()
            .and_then(|integer| i64::from_str_radix(integer.as_str(), integer.radix()).ok());
        match number {
            Some(number) => Some(At {
                value: number,
                span: value.span(),
            }),
            None => {
                self.wrong_type(value, key, "a whole number", "1");
                None
            }
        }
    }

    /// The truth value at `key`, if it is there.
    pub(super) fn boolean(&self, section: &Section<'t>, key: &str) -> Option<At<bool>> {
        let value = section.get(key)?;
        match value.get_ref() {
            DeValue::Boolean(truth) => Some(At {
                value: *truth,
                span: value.span(),
            }),
            _ => {
                self.wrong_type(value, section.key(key), "true or false", "true");
                None
            }
        }
    }

    /// The path at `key`, if it is there; a relative one starts at the file's directory.
    pub(super) fn path(&self, section: &Section<'t>, key: &str) -> Option<PathBuf> {
        let text = self.text(section, key)?;
        self.resolve(&text, section.key(key))
    }

    /// `text` as a path, taken from the file's directory if relative.
    pub(super) fn resolve(&self, text: &At<&str>, key: String) -> Option<PathBuf> {
        if text.value.is_empty() {
            self.problem(
                &text.span,
                key,
                "an empty path",
                "name a file or leave the key out",
            );
            return None;
        }
        Some(self.directory.join(text.value))
    }

    fn list(&self, section: &Section<'t>, key: &str) -> &'t [Spanned<DeValue<'t>>] {
        let Some(value) = section.get(key) else {
            return &[];
        };
        match value.get_ref() {
            DeValue::Array(array) => array,
            _ => {
                self.wrong_type(value, section.key(key), "a list", "[…]");
                &[]
            }
        }
    }

    fn as_table(&self, value: &'t Spanned<DeValue<'t>>, path: String) -> Option<Section<'t>> {
        let section = Section::of(value, path.clone());
        if section.is_none() {
            self.wrong_type(value, path, "a table", "{ … }");
        }
        section
    }

    fn as_text(&self, value: &'t Spanned<DeValue<'t>>, key: String) -> Option<At<&'t str>> {
        match value.get_ref() {
            DeValue::String(text) => Some(At {
                value: text.as_ref(),
                span: value.span(),
            }),
            _ => {
                self.wrong_type(value, key, "a text", "\"…\"");
                None
            }
        }
    }

    fn wrong_type(&self, value: &Spanned<DeValue<'_>>, key: String, expected: &str, shape: &str) {
        let found = match value.get_ref() {
            DeValue::String(_) => "a text",
            DeValue::Integer(_) => "a whole number",
            DeValue::Float(_) => "a number",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.problem(
            &value.span(),
            key,
            format!("{found} where {expected} belongs"),
            format!("write it as {shape}"),
        );
    }
}

/// The line of the byte at `offset`, counted from 1.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().iter().take(offset);
    1 + before.filter(|&&byte| byte == b'\n').count()
}
