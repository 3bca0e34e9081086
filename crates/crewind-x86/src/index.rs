//! Tables of translations and links, made to be small: there are a hundred thousand of them in a large program.

/// Number of a translation; 0 is none.
pub(crate) type FragId = u32;
/// Number of a link.
pub(crate) type LinkId = u32;

/// No link, no slot.
pub(crate) const NONE: u32 = u32::MAX;

/// A translation.
pub(crate) struct Frag {
    pub pc: u64,
    /// Offset of its code in the cache.
    pub host: u32,
    /// Offset of its table for `recover`; it ends where the next one's begins.
    pub map: u32,
    /// Offset of the indirect entry in the cache; 0: none.
    pub entry: u32,
    /// Next entry in the same slot of the look-up table.
    pub chain_next: FragId,
    /// First link that is patched to this translation.
    pub incoming: LinkId,
    /// Length of the code; 0: it was thrown away.
    pub len: u16,
    /// Offset of the body from `host`.
    pub body: u8,
    /// How far before `entry` the field of its mismatch jump lies.
    pub chain_field: u8,
}

impl Frag {
    pub(crate) const NONE: Frag = Frag {
        pc: 0,
        host: 0,
        map: 0,
        entry: 0,
        chain_next: 0,
        incoming: NONE,
        len: 0,
        body: 0,
        chain_field: 0,
    };

    pub(crate) fn is_dead(&self) -> bool {
        self.len == 0
    }
}

/// Where a link leads now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkState {
    /// To the stub with this number.
    Stub(u32),
    /// To its target's translation; the next link that leads there.
    Patched(LinkId),
}

/// A direct transfer.
struct Link {
    /// Its target, or the target's number in `high`.
    target: u32,
    /// Offset of its rel32 field in the cache, and the flags below.
    field: u32,
    /// Stub or next link.
    next: u32,
}

const HIGH: u32 = 1 << 31;
const PATCHED: u32 = 1 << 30;
/// Fields lie below this offset of the cache.
pub(crate) const MAX_FIELD: u32 = PATCHED;

/// All links.
#[derive(Default)]
pub(crate) struct Links {
    links: Vec<Link>,
    /// Targets beyond 4 GB.
    high: Vec<u64>,
}

impl Links {
    pub(crate) fn len(&self) -> u32 {
        self.links.len() as u32
    }

    /// Adds a link; its state is to be set next.
    pub(crate) fn push(&mut self, target: u64, field: u32) -> LinkId {
        debug_assert!(field < MAX_FIELD);
        let (target, flag) = match u32::try_from(target) {
            Ok(t) => (t, 0),
            Err(_) => {
                self.high.push(target);
                (self.high.len() as u32 - 1, HIGH)
            }
        };
        self.links.push(Link {
            target,
            field: field | flag,
            next: NONE,
        });
        self.len() - 1
    }

    /// Removes the last link.
    pub(crate) fn pop(&mut self) {
        if let Some(l) = self.links.pop()
            && l.field & HIGH != 0
        {
            self.high.pop();
        }
    }

    pub(crate) fn target(&self, id: LinkId) -> Option<u64> {
        let l = self.links.get(id as usize)?;
        if l.field & HIGH != 0 {
            self.high.get(l.target as usize).copied()
        } else {
            Some(l.target.into())
        }
    }

    /// Offset of its rel32 field in the cache.
    pub(crate) fn field(&self, id: LinkId) -> Option<u32> {
        self.links
            .get(id as usize)
            .map(|l| l.field & (MAX_FIELD - 1))
    }

    pub(crate) fn state(&self, id: LinkId) -> Option<LinkState> {
        self.links.get(id as usize).map(|l| {
            if l.field & PATCHED != 0 {
                LinkState::Patched(l.next)
            } else {
                LinkState::Stub(l.next)
            }
        })
    }

    pub(crate) fn set_state(&mut self, id: LinkId, state: LinkState) {
        if let Some(l) = self.links.get_mut(id as usize) {
            match state {
                LinkState::Stub(s) => (l.field, l.next) = (l.field & !PATCHED, s),
                LinkState::Patched(n) => (l.field, l.next) = (l.field | PATCHED, n),
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        self.links.clear();
        self.high.clear();
    }

    pub(crate) fn bytes(&self) -> usize {
        self.links.len() * size_of::<Link>() + self.high.len() * 8
    }
}

/// From guest pcs to translations: open addressing. A slot holds the low half of the pc, so that looking hardly ever
/// touches translations that are not meant; the whole pc lies in the translation.
#[derive(Default)]
pub(crate) struct PcIndex {
    slots: Vec<Slot>,
    /// Slots that are not free, deleted ones included.
    used: usize,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    pc_low: u32,
    /// 0: free.
    id: FragId,
}

const DELETED: FragId = u32::MAX;

impl PcIndex {
    fn hash(pc: u64) -> usize {
        let h = pc.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (h ^ (h >> 32))
            .wrapping_mul(0xd6e8_feb8_6659_fd93)
            .wrapping_shr(32) as usize
    }

    /// Slots to look at for `pc`, in order.
    fn probe(&self, pc: u64) -> impl Iterator<Item = usize> + use<> {
        let mask = self.slots.len().wrapping_sub(1);
        let first = Self::hash(pc);
        (0..self.slots.len()).map(move |n| first.wrapping_add(n) & mask)
    }

    pub(crate) fn get(&self, pc: u64, frags: &[Frag]) -> Option<FragId> {
        for at in self.probe(pc) {
            let s = self.slots.get(at).copied().unwrap_or_default();
            if s.id == 0 {
                return None;
            }
            if s.pc_low == pc as u32 && frags.get(s.id as usize).is_some_and(|f| f.pc == pc) {
                return Some(s.id);
            }
        }
        None
    }

    /// Adds one of `frags`, whose pc is not in the index.
    pub(crate) fn insert(&mut self, id: FragId, frags: &[Frag]) {
        if (self.used + 1) * 4 > self.slots.len() * 3 {
            let live: Vec<FragId> = self
                .slots
                .iter()
                .map(|s| s.id)
                .filter(|s| *s != 0 && *s != DELETED)
                .collect();
            let size = (live.len() * 2 + 2).next_power_of_two().max(1024);
            self.slots.clear();
            self.slots.resize(size, Slot::default());
            self.used = 0;
            for l in live {
                self.place(l, frags);
            }
        }
        self.place(id, frags);
    }

    fn place(&mut self, id: FragId, frags: &[Frag]) {
        let Some(pc) = frags.get(id as usize).map(|f| f.pc) else {
            return;
        };
        let free = self
            .probe(pc)
            .find(|at| self.slots.get(*at).is_some_and(|s| s.id == 0));
        if let Some(s) = free.and_then(|at| self.slots.get_mut(at)) {
            *s = Slot {
                pc_low: pc as u32,
                id,
            };
            self.used += 1;
        }
    }

    pub(crate) fn remove(&mut self, id: FragId, pc: u64) {
        let at = self
            .probe(pc)
            .find(|at| self.slots.get(*at).is_some_and(|s| s.id == id));
        if let Some(s) = at.and_then(|at| self.slots.get_mut(at)) {
            // The number is out of range of the translations, so `get` passes it over.
            s.id = DELETED;
        }
    }

    pub(crate) fn clear(&mut self) {
        self.slots.fill(Slot::default());
        self.used = 0;
    }

    pub(crate) fn bytes(&self) -> usize {
        self.slots.len() * size_of::<Slot>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn index_is_a_map() {
        let mut frags = vec![Frag::NONE];
        let mut index = PcIndex::default();
        let mut model = HashMap::new();
        let mut x = 1u64;
        for round in 0..20_000u64 {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let pc = 0x1000 + (x >> 33) % 3000 * 5;
            match index.get(pc, &frags) {
                Some(id) => {
                    assert_eq!(model.get(&pc), Some(&id));
                    if round % 3 == 0 {
                        index.remove(id, pc);
                        model.remove(&pc);
                    }
                }
                None => {
                    assert_eq!(model.get(&pc), None);
                    let id = frags.len() as FragId;
                    frags.push(Frag { pc, ..Frag::NONE });
                    index.insert(id, &frags);
                    model.insert(pc, id);
                }
            }
        }
        for (pc, id) in &model {
            assert_eq!(index.get(*pc, &frags), Some(*id));
        }
        index.clear();
        assert_eq!(index.get(0x1000, &frags), None);
    }

    #[test]
    fn links_keep_targets_and_states() {
        let mut l = Links::default();
        let a = l.push(0x40_0000, 17);
        let b = l.push(0x2000_0000_0000, 33);
        l.set_state(a, LinkState::Stub(5));
        l.set_state(b, LinkState::Patched(a));
        assert_eq!(
            (l.target(a), l.target(b)),
            (Some(0x40_0000), Some(0x2000_0000_0000))
        );
        assert_eq!((l.field(a), l.field(b)), (Some(17), Some(33)));
        assert_eq!(
            (l.state(a), l.state(b)),
            (Some(LinkState::Stub(5)), Some(LinkState::Patched(a)))
        );
        l.set_state(b, LinkState::Stub(9));
        assert_eq!(
            (l.state(b), l.target(b)),
            (Some(LinkState::Stub(9)), Some(0x2000_0000_0000))
        );
        l.pop();
        assert_eq!(l.target(b), None);
    }
}
