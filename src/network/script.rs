//! A plan as text: the commands a person would type, under a heading for each network; in colour where that helps.

use std::fmt::Display;

use anstream::adapter::strip_str;
use anstyle::{AnsiColor, Style};

use super::plan::{Effect, Planned, Remark};

const REMARK: Style = Style::new().dimmed();

/// `remarks` as comments, and `steps` as the commands a person would type, under a heading for each network.
pub fn script(remarks: &[Remark], steps: &[Planned]) -> String {
    strip_str(&styled(remarks, steps)).to_string()
}

/// As [`script`], in colour: what is added green, what goes red, comments and headings dim.
pub(super) fn styled(remarks: &[Remark], steps: &[Planned]) -> String {
    let mut text: String = remarks.iter().map(comment).collect();
    let mut heading = String::new();
    for planned in steps {
        let of = format!("# {}", planned.owner);
        if of != heading {
            text.push_str(&lines(&of, REMARK));
            heading = of;
        }
        text.push_str(&lines(planned, style_of(planned.step.effect())));
    }
    text
}

/// A comment of its own, in colour.
pub(super) fn comment(text: impl Display) -> String {
    lines(&format!("# {text}"), REMARK)
}

fn style_of(effect: Effect) -> Style {
    match effect {
        Effect::Adds => AnsiColor::Green.on_default(),
        Effect::Removes => AnsiColor::Red.on_default(),
        Effect::Changes => Style::new(),
    }
}

/// Each line of `text` in a style of its own: pagers forget what the line before had begun.
fn lines(text: &impl Display, style: Style) -> String {
    let line = |line: &str| format!("{style}{line}{style:#}\n");
    text.to_string().lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::plan::{LinkStep, Owner, Step};

    #[test]
    fn what_comes_and_goes_is_told_by_colour_and_the_text_stays_the_same() {
        let of_network = |step: LinkStep| Planned {
            owner: Owner::Network("a".parse().unwrap()),
            tenant: None,
            step: step.into(),
        };
        let link = || "rt-a".parse().unwrap();
        let address = "10.0.0.1/24".parse().unwrap();
        let steps = [
            of_network(LinkStep::AddAddress {
                link: link(),
                address,
            }),
            of_network(LinkStep::SetUp { link: link() }),
            Planned {
                owner: Owner::Host,
                tenant: None,
                step: Step::RemoveDir { dir: "/d".into() },
            },
        ];
        let expected = [
            "\x1b[2m# network a\x1b[0m",
            "\x1b[32mip address add 10.0.0.1/24 brd + dev rt-a\x1b[0m",
            "ip link set rt-a up",
            "\x1b[2m# the host\x1b[0m",
            "\x1b[31mrm -r /d\x1b[0m",
        ];
        assert_eq!(styled(&[], &steps).lines().collect::<Vec<_>>(), expected);
        let plain = "# network a\nip address add 10.0.0.1/24 brd + dev rt-a\nip link set rt-a up\n";
        assert_eq!(
            script(&[], &steps),
            format!("{plain}# the host\nrm -r /d\n")
        );
    }
}
