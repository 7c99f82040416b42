//! The page of a run of back-ends, and its charts. Pure.

use super::chart::{Bar, Group, bars, curves};
use super::page::{Page, latencies};
use super::report::{Chapter, Report};
use super::sample::Sample;
use super::work::Work;

/// The page.
pub fn page(report: &Report) -> Page {
    let mut page = Page::new("ringtap bench", &report.setting);
    let names = report.names();
    for work in Work::ALL {
        let chapters = report.chapters.iter().filter(|it| it.work == work);
        let chapters: Vec<&Chapter> = chapters.collect();
        if !chapters.is_empty() {
            section(&mut page, work, &chapters, &names);
        }
    }
    page
}

fn section(page: &mut Page, work: Work, chapters: &[&Chapter], names: &[&str]) {
    page.section(work.title());
    match work {
        Work::Rr => {
            for chapter in chapters {
                let subjects = chapter.subjects.iter();
                let all = subjects
                    .map(|it| latencies(it, number_of(&it.name, names), |sample| sample.latency));
                let chart = curves(&all.collect::<Vec<_>>(), "µs");
                page.chart(&format!("round trips, {}", chapter.title()), &chart);
            }
        }
        _ => page.chart("throughput", &throughput(chapters, names)),
    }
    let cpu = groups(
        chapters,
        names,
        |it| it.usage.cpu_ns as f64 / it.count as f64,
        |cpu, _| format!("{cpu:.0} ns"),
    );
    page.chart(&format!("CPU a {}", work.unit()), &bars(&cpu));
    for chapter in chapters {
        page.table(&chapter.table(), &chapter.subjects);
    }
}

/// Throughput by frame size, each beside what the kernel allows. `names` are of all who take part anywhere, in the order of their
/// colours.
pub fn throughput(chapters: &[&Chapter], names: &[&str]) -> String {
    let groups = groups(chapters, names, Sample::rate, |rate, chapter| {
        let gigabits = chapter.gigabits(rate);
        match chapter.work {
            Work::Churn => format!("{:.1} thousand a second", rate / 1e3),
            _ => format!("{:.3} Mpps, {gigabits:.2} Gbit/s", rate / 1e6),
        }
    });
    bars(&groups)
}

fn groups(
    chapters: &[&Chapter],
    names: &[&str],
    value: impl Fn(&Sample) -> f64,
    text: impl Fn(f64, &Chapter) -> String,
) -> Vec<Group> {
    let group = |chapter: &&Chapter| {
        let bars = chapter.subjects.iter().filter_map(|subject| {
            let colour = number_of(&subject.name, names);
            let samples = subject.samples.iter().map(&value);
            Bar::of(&subject.name, colour, samples, |median| {
                text(median, chapter)
            })
        });
        Group {
            title: format!("{}, {}", chapter.work.title(), chapter.title()),
            bars: bars.collect(),
        }
    };
    chapters.iter().map(group).collect()
}

fn number_of(name: &str, names: &[&str]) -> usize {
    let found = names.iter().position(|known| *known == name);
    found.unwrap_or(names.len())
}
