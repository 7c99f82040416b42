//! What is wrong with a file: each problem with its place, its key, the cause and the remedy.

use std::fmt;
use std::path::{Path, PathBuf};

/// One thing that is wrong in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line, counted from 1; none where the file as a whole is at fault.
    pub line: Option<usize>,
    /// The key at fault with its tables, such as `networks.default.subnet`; empty where there is none.
    pub key: String,
    /// What is wrong.
    pub cause: String,
    /// What to do about it.
    pub remedy: String,
}

/// Everything that is wrong with a file, in the order of its lines; prints one problem a line.
///
/// Wherever it is found in a chain of causes, the person's file or wording is at fault, and the program's
/// exit code is 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    file: PathBuf,
    list: Vec<Problem>,
}

impl Problems {
    /// The problems of `file`, sorted by line.
    pub(super) fn new(file: &Path, mut list: Vec<Problem>) -> Self {
        list.sort_by_key(|problem| problem.line);
        Self {
            file: file.to_owned(),
            list,
        }
    }

    /// A problem of the file as a whole.
    pub(super) fn whole(file: &Path, cause: String, remedy: String) -> Self {
        let problem = Problem {
            line: None,
            key: String::new(),
            cause,
            remedy,
        };
        Self::new(file, vec![problem])
    }

    /// Each problem.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.list.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{}:", self.file.display())?;
            if let Some(line) = problem.line {
                write!(f, "{line}:")?;
            }
            if !problem.key.is_empty() {
                write!(f, " {}:", problem.key)?;
            }
            write!(f, " {}; {}", problem.cause, problem.remedy)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// "; did you mean …?" where one of `known` is near to `word`, else the list of `known`.
pub(super) fn suggest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    match nearest(word, &known) {
        Some(near) => format!("did you mean `{near}`?"),
        None if known.is_empty() => "there is none in the file".to_owned(),
        None => format!("known: {}", known.join(", ")),
    }
}

/// The one of `known` that `word` was probably meant to be: a slip for each four letters is believed.
fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let believed = (word.len() / 4 + 1).min(word.len().saturating_sub(1));
    known
        .iter()
        .map(|&candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(slips, _)| *slips <= believed)
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, candidate)| candidate)
}
