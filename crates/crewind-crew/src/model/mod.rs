//! The protocol on a model of the mechanism: threads, vcpus with their states, requests, the crew lock; one step of one
//! thread at a time. What happens is noted, and `oracle` compares it with what the log says.
//!
//! The model has the steps of `crewind-guest`'s `par` that matter for who may touch what: a running thread answers
//! requests only when it leaves translated code, others take from a parked one by themselves, a busy one keeps
//! what it has. Memory is sequentially consistent.

mod explore;
mod oracle;
mod programs;

use crewind_trace::event::{Edge, ThreadId};

use crate::Mutant;
use crate::claim::{Claim, Class, NONE, READ, WRITE};
use crate::edges::{Known, Point};
use crate::page::Pages;

/// What a guest thread does.
#[derive(Clone, Debug)]
pub(super) enum Insn {
    /// One instruction that reads (false) or writes (true) granules.
    Access(Vec<(u32, bool)>),
    /// The clock advances; requests are answered.
    Tick,
    /// Gives its vcpu up and takes one again.
    Yield,
    /// The thread gives its right to a granule back unasked: all of it (false), or that to write (true). As at an access
    /// that faults, or some time after a claim.
    GiveBack(u32, bool),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Parked,
    Asking,
    Busy,
    Running,
}

#[derive(Clone, Debug)]
struct Slot {
    state: State,
    /// The thread that holds it.
    owner: Option<usize>,
    point: Point,
    /// Requests of vcpus: a granule run, and what its holder keeps.
    asked: Vec<Option<Asked>>,
}

#[derive(Clone, Debug)]
struct Asked {
    run: (u32, u32),
    after: Vec<Class>,
    answer: Option<Point>,
}

/// Where a thread is in the mechanism.
#[derive(Clone, Debug)]
enum Phase {
    /// Waits for a vcpu.
    NoVcpu,
    /// Busy: logs what it has come to wait for, and goes on.
    Log,
    Running,
    /// Waits for rights, without the crew lock.
    Asking,
    /// Holds the crew lock and takes the rights of one vcpu after the other.
    Claiming(Work),
    /// Waits for a busy vcpu.
    WaitsFor(usize),
    /// Gave up, parked outside translated code.
    Stopped,
    /// Gives a right back: the granule, and whether it goes on as a reader.
    GivesBack(u32, bool),
    Over,
}

#[derive(Clone, Debug)]
struct Work {
    run: (u32, u32),
    /// By granule of the run.
    claims: Vec<Claim>,
    losers: Vec<usize>,
    taken: usize,
    posted: bool,
    edges: Vec<Edge>,
}

#[derive(Clone, Debug)]
struct Guest {
    phase: Phase,
    pc: usize,
    vcpu: usize,
    clock: u64,
    completed: u64,
    edges: Vec<Edge>,
    known: Known,
}

/// What a thread did, in its order.
#[derive(Clone, Debug)]
pub(super) enum What {
    Access(u32, bool),
    Sync(Vec<Edge>),
}

/// One thing that happened.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub thread: usize,
    pub clock: u64,
    /// Events of the thread that were completed before.
    pub completed: u64,
    pub what: What,
}

/// The whole model.
#[derive(Clone, Debug)]
pub(super) struct World {
    code: std::rc::Rc<Vec<Vec<Insn>>>,
    /// Neighbouring granules in one class are claimed together.
    wide: bool,
    mutant: Option<Mutant>,
    classes: Vec<Class>,
    slots: Vec<Slot>,
    guests: Vec<Guest>,
    pages: Pages,
    crew_lock: Option<usize>,
    pub(super) history: Vec<Item>,
}

impl World {
    pub(super) fn new(
        code: Vec<Vec<Insn>>,
        vcpus: usize,
        granules: usize,
        wide: bool,
        mutant: Option<Mutant>,
    ) -> World {
        let slot = Slot {
            state: State::Parked,
            owner: None,
            point: Point::default(),
            asked: vec![None; vcpus],
        };
        let guest = Guest {
            phase: Phase::NoVcpu,
            pc: 0,
            vcpu: 0,
            clock: 0,
            completed: 0,
            edges: Vec::new(),
            known: Known::default(),
        };
        let mut world = World {
            guests: vec![guest; code.len()],
            code: code.into(),
            wide,
            mutant,
            classes: vec![Class::nobody(vcpus); granules],
            slots: vec![slot; vcpus],
            pages: Pages::default(),
            crew_lock: None,
            history: Vec::new(),
        };
        world.pages.mutant = mutant;
        world.slots.iter_mut().for_each(|s| s.point.mutant = mutant);
        world
            .guests
            .iter_mut()
            .for_each(|g| g.known.mutant = mutant);
        world
    }

    pub(super) fn threads(&self) -> usize {
        self.guests.len()
    }

    pub(super) fn over(&self) -> bool {
        self.guests.iter().all(|g| matches!(g.phase, Phase::Over))
    }

    /// One step of thread `t`; false: it cannot go on now. With `give_up` a thread that waits for rights goes back, as when
    /// the world is being stopped.
    pub(super) fn step(&mut self, t: usize, give_up: bool) -> bool {
        let guest = self.guests[t].clone();
        let v = guest.vcpu;
        match guest.phase {
            Phase::Over => false,
            Phase::NoVcpu => {
                let Some(v) = self.slots.iter().position(|s| s.owner.is_none()) else {
                    return false;
                };
                self.slots[v].owner = Some(t);
                self.slots[v].state = State::Busy;
                if self.mutant != Some(Mutant::VcpuWithoutPoint) {
                    let edges: Vec<Edge> = self.slots[v].point.edges().collect();
                    self.guests[t].edges.extend(edges);
                }
                self.guests[t].vcpu = v;
                self.guests[t].phase = Phase::Log;
                true
            }
            Phase::Log => {
                let g = &mut self.guests[t];
                let edges = std::mem::take(&mut g.edges);
                let edges = g.known.reduce(id(t), &edges, None);
                if !edges.is_empty() {
                    self.history.push(Item {
                        thread: t,
                        clock: g.clock,
                        completed: g.completed,
                        what: What::Sync(edges),
                    });
                    g.completed += 1;
                }
                g.phase = Phase::Running;
                self.slots[v].state = State::Running;
                true
            }
            Phase::Running => self.run(t, v),
            Phase::Asking | Phase::WaitsFor(_) if give_up => {
                // Parked with what it has come to wait for.
                self.park(t, State::Parked);
                self.guests[t].phase = Phase::Stopped;
                true
            }
            Phase::WaitsFor(u) => {
                if self.slots[u].state == State::Busy {
                    return false;
                }
                self.guests[t].phase = Phase::Asking;
                true
            }
            Phase::Stopped => {
                self.slots[v].state = State::Busy;
                self.guests[t].phase = Phase::Log;
                true
            }
            Phase::Asking => {
                if self.crew_lock.is_some() {
                    return false;
                }
                self.crew_lock = Some(t);
                self.next_claim(t);
                true
            }
            Phase::Claiming(work) => self.claim(t, work),
            Phase::GivesBack(granule, reads) => {
                if self.crew_lock.is_some() {
                    return false;
                }
                let class = self.classes[granule as usize];
                let right = class.right(v);
                if if reads { right == WRITE } else { right != NONE } {
                    let run = (granule, granule + 1);
                    let waits_for = &self.guests[t].edges;
                    self.pages.given_back(run, self.here(t), waits_for);
                    let left = if reads { READ } else { NONE };
                    self.classes[granule as usize] = class.with(v, left);
                }
                self.guests[t].pc += 1;
                self.guests[t].phase = Phase::Log;
                true
            }
        }
    }

    fn run(&mut self, t: usize, v: usize) -> bool {
        let code = self.code.clone();
        let Some(insn) = code[t].get(self.guests[t].pc) else {
            self.leave(t);
            self.park(t, State::Parked);
            self.slots[v].owner = None;
            self.guests[t].phase = Phase::Over;
            return true;
        };
        match insn {
            Insn::Tick => {
                self.guests[t].clock += 1;
                self.guests[t].pc += 1;
                self.leave(t);
                self.slots[v].state = State::Running;
            }
            Insn::Yield => {
                self.guests[t].pc += 1;
                self.leave(t);
                self.park(t, State::Parked);
                self.slots[v].owner = None;
                self.guests[t].phase = Phase::NoVcpu;
            }
            Insn::GiveBack(granule, reads) => {
                self.leave(t);
                self.guests[t].phase = Phase::GivesBack(*granule, *reads);
            }
            Insn::Access(list) => {
                if list.iter().any(|w| self.lacks(v, *w)) {
                    self.leave(t);
                    self.park(t, State::Asking);
                    self.guests[t].phase = Phase::Asking;
                    return true;
                }
                for (granule, write) in list {
                    self.history.push(Item {
                        thread: t,
                        clock: self.guests[t].clock,
                        completed: self.guests[t].completed,
                        what: What::Access(*granule, *write),
                    });
                }
                self.guests[t].pc += 1;
            }
        }
        true
    }

    fn lacks(&self, v: usize, (granule, write): (u32, bool)) -> bool {
        let right = self.classes[granule as usize].right(v);
        right == NONE || write && right == READ
    }

    /// Out of translated code: answers what was asked.
    fn leave(&mut self, t: usize) {
        let v = self.guests[t].vcpu;
        let at = self.here(t);
        for from in 0..self.slots.len() {
            let Some(asked) = &mut self.slots[v].asked[from] else {
                continue;
            };
            if asked.answer.is_some() {
                continue;
            }
            let mut point = Point::default();
            point.mutant = self.mutant;
            point.set(at, &self.guests[t].edges);
            asked.answer = Some(point);
            let (run, after) = (asked.run, asked.after.clone());
            self.set_classes(run, &after);
        }
        self.slots[v].state = State::Busy;
    }

    fn here(&self, t: usize) -> Edge {
        Edge {
            thread: id(t),
            clock: self.guests[t].clock,
            event: self.guests[t].completed + 1,
        }
    }

    fn park(&mut self, t: usize, how: State) {
        let at = self.here(t);
        let slot = &mut self.slots[self.guests[t].vcpu];
        slot.point.set(at, &self.guests[t].edges);
        slot.state = how;
    }

    fn set_classes(&mut self, run: (u32, u32), classes: &[Class]) {
        for (i, c) in (run.0..run.1).zip(classes) {
            self.classes[i as usize] = *c;
        }
    }

    /// With the crew lock: begins the next claim that the instruction needs, or goes on with all rights.
    fn next_claim(&mut self, t: usize) {
        let v = self.guests[t].vcpu;
        let code = self.code.clone();
        let Some(Insn::Access(list)) = code[t].get(self.guests[t].pc) else {
            unreachable!("only accesses ask for rights");
        };
        let Some(want) = list.iter().find(|w| self.lacks(v, **w)).copied() else {
            self.slots[v].state = State::Busy;
            self.crew_lock = None;
            self.guests[t].phase = Phase::Log;
            return;
        };
        let (i, write) = want;
        let class = self.classes[i as usize];
        let claim = |c| Claim::new(c, self.slots.len(), v, write);
        let more = self.wide && self.classes.get(i as usize + 1) == Some(&class);
        let run = (i, i + 1 + u32::from(more));
        let claims = vec![claim(class); (run.1 - run.0) as usize];
        let mut losers: Vec<usize> = claim(class).losers().collect();
        if self.mutant == Some(Mutant::WritersBesideReaders) {
            losers.retain(|u| class.right(*u) == WRITE);
        }
        self.guests[t].phase = Phase::Claiming(Work {
            run,
            claims,
            losers,
            taken: 0,
            posted: false,
            edges: Vec::new(),
        });
    }

    fn claim(&mut self, t: usize, mut work: Work) -> bool {
        let v = self.guests[t].vcpu;
        let Some(&u) = work.losers.get(work.taken) else {
            // All taken.
            let claim = work.claims[0];
            let mut edges = std::mem::take(&mut work.edges);
            self.pages.joined(work.run, &claim, v, &mut edges, 0);
            self.guests[t].edges.extend(edges);
            for i in work.run.0..work.run.1 {
                let c = &mut self.classes[i as usize];
                *c = c.with(v, claim.mine());
            }
            self.next_claim(t);
            return true;
        };
        let classes = self.losing(&work, u);
        if work.posted {
            let asked = self.slots[u].asked[v].clone();
            if let Some(Asked {
                answer: Some(point),
                ..
            }) = asked
            {
                self.slots[u].asked[v] = None;
                work.edges.extend(point.edges());
                work.posted = false;
                work.taken += 1;
                self.guests[t].phase = Phase::Claiming(work);
                return true;
            }
            if self.slots[u].state == State::Running {
                return false;
            }
            self.slots[u].asked[v] = None;
            work.posted = false;
        }
        match self.slots[u].state {
            State::Parked | State::Asking => {
                work.edges.extend(self.slots[u].point.edges());
                self.set_classes(work.run, &classes);
                work.taken += 1;
                self.guests[t].phase = Phase::Claiming(work);
            }
            State::Running => {
                self.slots[u].asked[v] = Some(Asked {
                    run: work.run,
                    after: classes,
                    answer: None,
                });
                work.posted = true;
                self.guests[t].phase = Phase::Claiming(work);
            }
            State::Busy => {
                if !work.edges.is_empty() {
                    self.pages.lost(work.run, &work.edges);
                }
                // Others may look at it again.
                self.park(t, State::Asking);
                self.crew_lock = None;
                self.guests[t].phase = Phase::WaitsFor(u);
            }
        }
        true
    }

    /// The classes of the run when `u` has lost what the claim takes.
    fn losing(&self, work: &Work, u: usize) -> Vec<Class> {
        let kept = work.claims[0].kept();
        (work.run.0..work.run.1)
            .map(|i| self.classes[i as usize].with(u, kept))
            .collect()
    }

    /// Something that is the same in equal states.
    pub(super) fn print(&self) -> String {
        format!("{self:?}")
    }
}

fn id(t: usize) -> ThreadId {
    ThreadId(t as u32 + 1)
}
