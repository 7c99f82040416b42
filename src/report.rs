//! What commands tell the person, on stdout: lines for people, JSON for programs. Errors and the log go to stderr.

use std::error::Error;
use std::fmt::Display;
use std::io::{self, Write};

use serde::Serialize;

/// Tells the person; that nobody listens any more must not stop what is under way.
pub fn say(text: impl Display) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// As [`say`], with the colours of `text` where stdout is a terminal that has them and nobody has set `NO_COLOR`.
pub fn say_in_colour(text: impl Display) {
    let _ = writeln!(anstream::stdout(), "{text}");
}

/// `error` and its causes in a line.
pub fn causes(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    let texts: Vec<String> = causes.map(ToString::to_string).collect();
    texts.join(": ")
}

/// Prints a value for programs.
pub fn print_json(value: &impl Serialize) {
    // Serializing such values can't fail; `{:#}` of a Value prints it over several lines.
    say(format_args!("{:#}", serde_json::json!(value)));
}
