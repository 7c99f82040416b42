//! Connections from a guest to another on the same bridge: opened, asked by and closed, one after the other, each from a port
//! of its own. What remembers flows (a tap its queues, a bridge's netfilter or Open vSwitch connections) meets a new one each
//! time.
//!
//! A number of places is taken at once; a place's next connection begins when its last is over. Each frame is to be the one that
//! its place waits for, so one that is lost, doubled or out of order is seen at once.

use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

use super::{LAST, Load, SILENCE, progress};
use crate::bench::WorkError;
use crate::bench::nic::Nic;
use crate::bench::pattern::{EXCHANGES, Verdict};
use crate::bench::sample::{Progress, Sample};
use crate::bench::wire::NAP;

/// How many connections there are at once.
const PLACES: u64 = 64;

/// Connections from the guest of the first NIC to that of the second, for `span`, as many as go.
pub(super) fn churn(
    from: &mut Nic,
    to: &mut Nic,
    pids: &[u32],
    span: Duration,
) -> Result<Sample, WorkError> {
    let mut churn = Churn::new(End::of(from), End::of(to));
    let sample = churn.measure(pids, span)?;
    churn.end()?;
    Ok(sample)
}

struct Churn<'a> {
    client: End<'a>,
    server: End<'a>,
    places: Vec<Place>,
    /// Connections that are over.
    over: u64,
    /// No more are to be opened.
    ends: bool,
    /// When something was heard last.
    heard: Instant,
}

/// A guest, and frames for which its rings have no room yet: the pair that is to send each, and its number.
struct End<'a> {
    nic: &'a mut Nic,
    waiting: VecDeque<(usize, u64)>,
}

/// Where a connection is.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// The number of the frame that the client has sent last, and of its answer.
    number: u64,
    waits_for: Heard,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// The server is to get it.
    Question,
    /// The client is to get the answer.
    Answer,
    /// The last connection of this place is over.
    Nothing,
}

impl<'a> Churn<'a> {
    fn new(client: End<'a>, server: End<'a>) -> Self {
        let place = |connection| Place {
            number: connection * EXCHANGES,
            waits_for: Heard::Question,
        };
        let mut new = Self {
            client,
            server,
            places: (0..PLACES).map(place).collect(),
            over: 0,
            ends: false,
            heard: Instant::now(),
        };
        for place in 0..new.places.len() {
            new.ask(place);
        }
        new
    }

    /// Sends what a place's number says; the connections of a place are all of one pair.
    fn ask(&mut self, place: usize) {
        let pair = place % self.client.nic.pairs.len();
        self.client
            .waiting
            .push_back((pair, self.places[place].number));
    }

    /// The place of frame `number`, if it is the one for which it waits.
    fn place_of(&self, number: u64, heard: Heard) -> Result<usize, WorkError> {
        let at = (number / EXCHANGES % PLACES) as usize;
        let place = self.places[at];
        match place.number == number && place.waits_for == heard {
            true => Ok(at),
            false => Err(WorkError::Void(format!(
                "frame {number} of connection {} came when frame {} was awaited ({:?})",
                number / EXCHANGES,
                place.number,
                place.waits_for,
            ))),
        }
    }

    fn question(&mut self, pair: usize, number: u64) -> Result<(), WorkError> {
        let place = self.place_of(number, Heard::Question)?;
        self.places[place].waits_for = Heard::Answer;
        self.server.waiting.push_back((pair, number));
        Ok(())
    }

    fn answer(&mut self, number: u64) -> Result<(), WorkError> {
        let at = self.place_of(number, Heard::Answer)?;
        let is_over = number % EXCHANGES == EXCHANGES - 1;
        self.over += u64::from(is_over);
        if is_over && self.ends {
            self.places[at].waits_for = Heard::Nothing;
            return Ok(());
        }
        let others = if is_over { PLACES - 1 } else { 0 };
        self.places[at] = Place {
            number: number + 1 + others * EXCHANGES,
            waits_for: Heard::Question,
        };
        self.ask(at);
        Ok(())
    }

    /// Lets connections come to their end, and sees whether anything comes after that.
    fn end(&mut self) -> Result<(), WorkError> {
        self.ends = true;
        while self.places.iter().any(|it| it.waits_for != Heard::Nothing) {
            if self.turn()? == 0 {
                thread::sleep(NAP);
            }
        }
        thread::sleep(SILENCE);
        self.turn().map(drop)
    }
}

impl Load for Churn<'_> {
    fn turn(&mut self) -> Result<u64, WorkError> {
        self.client.send();
        let questions = self.server.heard()?;
        for (pair, number) in &questions {
            self.question(*pair, *number)?;
        }
        self.server.send();
        let answers = self.client.heard()?;
        for (_, number) in &answers {
            self.answer(*number)?;
        }
        let heard = questions.len() + answers.len();
        if heard > 0 {
            self.heard = Instant::now();
        } else if self.heard.elapsed() > LAST {
            let lost = self
                .places
                .iter()
                .filter(|it| it.waits_for != Heard::Nothing);
            let why = format!("frames of {} connections are lost", lost.count());
            return Err(WorkError::Void(why));
        }
        Ok(heard as u64)
    }

    fn progress(&mut self) -> Progress {
        let pairs = self.client.nic.pairs.iter_mut();
        let pairs = pairs.chain(&mut self.server.nic.pairs);
        let (mut receiving, mut sending): (Vec<_>, Vec<_>) = pairs.map(|(rx, tx)| (rx, tx)).unzip();
        progress(self.over, &mut sending, &mut receiving)
    }
}

impl<'a> End<'a> {
    fn of(nic: &'a mut Nic) -> Self {
        Self {
            nic,
            waiting: VecDeque::new(),
        }
    }

    /// Sends what waits, as far as there is room.
    fn send(&mut self) {
        while let Some((pair, number)) = self.waiting.front()
            && self.nic.pairs[*pair].1.put(*number)
        {
            self.waiting.pop_front();
        }
        for (_, transmitq) in &mut self.nic.pairs {
            transmitq.flush();
        }
    }

    /// What has come: by which pair, and its number.
    fn heard(&mut self) -> Result<Vec<(usize, u64)>, WorkError> {
        let mut numbers = Vec::new();
        let mut damaged = 0;
        for (pair, (receiveq, _)) in self.nic.pairs.iter_mut().enumerate() {
            receiveq.take(|verdict| match verdict {
                Verdict::Whole(number) => numbers.push((pair, number)),
                Verdict::Damaged => damaged += 1,
                Verdict::Foreign => {}
            });
        }
        match damaged {
            0 => Ok(numbers),
            _ => Err(WorkError::Void(format!("{damaged} frames are damaged"))),
        }
    }
}
