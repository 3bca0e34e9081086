//! Watches a replay: passes places in the order of output that nobody has, and notices when nothing moves.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use crewind_guest::replayed::{Recording, ReplayShared};
use crewind_guest::start::Failure;
use crewind_trace::{Outline, TraceDir};

use super::signals;

/// How often to look.
pub const INTERVAL: Duration = Duration::from_millis(500);

/// Looks in a row that find nothing moving before a replay counts as stuck. Its processes wait for nothing but each
/// other, so one that is right always computes, reads its trace or writes. Long enough for a trace on a slow disk.
const STILL: u32 = 60;

/// What the processes of a replay do.
pub struct Watch {
    shared: Arc<ReplayShared>,
    trace: PathBuf,
    /// Next place in the order of output and processor time of all processes at the last look.
    last: (u64, u64),
    still: u32,
    reading: Option<Receiver<Option<String>>>,
}

impl Watch {
    /// Begins to watch the replay of `trace`, whose outline is known already if it is unfinished.
    pub fn new(shared: ReplayShared, trace: &TraceDir, outline: Option<Outline>) -> Self {
        let mut watch = Watch {
            shared: Arc::new(shared),
            trace: trace.path().to_owned(),
            last: (0, 0),
            still: 0,
            reading: None,
        };
        if let Some(outline) = outline {
            watch.pass_missing(move |_| Some(outline));
        }
        watch
    }

    /// Looks once. Returns why the replay is to be ended, if so.
    pub fn look(&mut self) -> Option<(Failure, String)> {
        let activity = signals::activity();
        let now = (self.shared.next(), activity.time);
        let moved = now.0 != self.last.0;
        let stands = now == self.last && activity.asleep && !self.shared.is_written();
        self.last = now;
        self.still = if stands { self.still + 1 } else { 0 };
        if !moved && self.reading.is_none() && self.shared.is_waited_for() {
            // Most likely somebody computes. If not, this finds out.
            self.pass_missing(|trace| {
                let trace = TraceDir::open(trace).ok()?;
                Outline::read(&trace).ok()
            });
        }
        if let Some(reading) = &self.reading
            && let Ok(Some(damage)) = reading.try_recv()
        {
            return Some((Failure::TraceEnd, damage));
        }
        (self.still >= STILL).then(|| {
            let message = format!(
                "the replay does not move any more: output number {} never comes. That is a mistake of crewind's, or one \
                 of its processes was killed; please report it with the trace {}",
                now.0,
                self.trace.display()
            );
            (Failure::Internal, message)
        })
    }

    /// In a thread of its own, which ends with this process: reads the trace, and passes what nobody will show.
    fn pass_missing(
        &mut self,
        outline: impl FnOnce(&std::path::Path) -> Option<Outline> + Send + 'static,
    ) {
        let (tell, told) = mpsc::channel();
        self.reading = Some(told);
        let (shared, trace) = (self.shared.clone(), self.trace.clone());
        let work = move || {
            let Some(outline) = outline(&trace) else {
                return;
            };
            // In a finished trace, what is missing may be in the damaged part. An unfinished one ends there.
            if shared.recording() == Recording::Finished
                && let Some(damage) = outline.damage.first()
            {
                let _ = tell.send(Some(format!("the trace is damaged: {damage}")));
                return;
            }
            for missing in outline.missing {
                shared.pass(missing);
            }
        };
        // Without a thread there is still the end of a replay that does not move.
        let _ = std::thread::Builder::new()
            .name("missing output".into())
            .spawn(work);
    }
}
