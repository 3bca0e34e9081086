//! Rights of all vcpus to a granule, and what a claim makes of them.

/// Two bits of a right: may not read, may not write. The bits are those of the tables that translated code looks into.
pub const NONE: u8 = 3;
/// May read.
pub const READ: u8 = 2;
/// May read and write.
pub const WRITE: u8 = 0;

/// Rights of up to 16 vcpus to a granule, two bits each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Class(pub u32);

impl Class {
    /// Nobody may touch it.
    pub const fn nobody(vcpus: usize) -> Class {
        match vcpus {
            16.. => Class(u32::MAX),
            n => Class((1 << (2 * n)) - 1),
        }
    }

    /// The right of a vcpu.
    pub const fn right(self, v: usize) -> u8 {
        (self.0 >> (2 * v)) as u8 & NONE
    }

    /// The same with another right for one vcpu.
    #[must_use]
    pub const fn with(self, v: usize, right: u8) -> Class {
        let mask = (NONE as u32) << (2 * v);
        Class(self.0 & !mask | (right as u32) << (2 * v))
    }
}

/// What becomes of a granule that a vcpu wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    class: Class,
    vcpus: usize,
    me: usize,
    write: bool,
}

impl Claim {
    /// Vcpu `me` of so many wants a granule of a class, to write or only to read.
    pub fn new(class: Class, vcpus: usize, me: usize, write: bool) -> Claim {
        Claim {
            class,
            vcpus,
            me,
            write,
        }
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let (class, me) = (self.class, self.me);
        (0..self.vcpus).filter(move |v| *v != me && class.right(*v) != NONE)
    }

    /// Whether another vcpu has exactly this right.
    pub(crate) fn another_has(&self, right: u8) -> bool {
        self.others().any(|v| self.class.right(v) == right)
    }

    /// What `me` has before.
    pub(crate) fn had(&self) -> u8 {
        self.class.right(self.me)
    }

    /// The vcpu that claims it.
    pub(crate) fn vcpu(&self) -> usize {
        self.me
    }

    /// Whether it is claimed to be written.
    pub(crate) fn writes(&self) -> bool {
        self.write
    }

    /// Nobody has any right to it.
    pub fn is_untouched(&self) -> bool {
        self.class == Class::nobody(self.vcpus)
    }

    /// What `me` gets. Who reads alone may write as well: most of what is read first is written next.
    pub fn mine(&self) -> u8 {
        match self.write || self.others().next().is_none() {
            true => WRITE,
            false => READ,
        }
    }

    /// Vcpus that lose something, in the order in which it is taken from them.
    pub fn losers(&self) -> impl Iterator<Item = usize> + use<> {
        let (class, write) = (self.class, self.write);
        self.others()
            .filter(move |v| write || class.right(*v) == WRITE)
    }

    /// What they keep.
    pub fn kept(&self) -> u8 {
        if self.write { NONE } else { READ }
    }

    /// The class when the first `n` losers have lost theirs; with the last one `me` has what it gets.
    pub fn after(&self, n: usize) -> Class {
        let kept = self.kept();
        let now = self
            .losers()
            .take(n)
            .fold(self.class, |c, u| c.with(u, kept));
        match n >= self.losers().count() {
            true => now.with(self.me, self.mine()),
            false => now,
        }
    }

    /// Whether those who lose a right were writers that go on reading.
    pub fn demotes(&self) -> bool {
        !self.write
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All classes that CREW allows.
    fn allowed(vcpus: usize) -> Vec<Class> {
        let nobody = Class::nobody(vcpus);
        let writers = (0..vcpus).map(|v| nobody.with(v, WRITE));
        let readers = (0..1usize << vcpus).map(|set| {
            let of = (0..vcpus).filter(|v| set >> v & 1 != 0);
            of.fold(nobody, |c, v| c.with(v, READ))
        });
        writers.chain(readers).collect()
    }

    #[test]
    fn a_claim_leads_from_one_allowed_class_to_another() {
        for vcpus in 1..=8 {
            let all = allowed(vcpus);
            for class in &all {
                for me in 0..vcpus {
                    for write in [false, true] {
                        let c = Claim::new(*class, vcpus, me, write);
                        let n = c.losers().count();
                        for k in 0..=n {
                            assert!(all.contains(&c.after(k)), "{class:?} {c:?} {k}");
                        }
                        let end = c.after(n).right(me);
                        assert!(end == WRITE || end == READ && !write);
                        assert_eq!(end == WRITE, c.mine() == WRITE);
                    }
                }
            }
        }
    }

    #[test]
    fn readers_share_and_writers_are_alone() {
        let nobody = Class::nobody(3);
        let c = Claim::new(nobody, 3, 1, false);
        assert!(c.is_untouched() && c.mine() == WRITE && c.losers().next().is_none());
        let owned = c.after(0);
        let c = Claim::new(owned, 3, 0, false);
        assert_eq!((c.mine(), c.kept()), (READ, READ));
        assert_eq!(c.losers().collect::<Vec<_>>(), [1]);
        let shared = c.after(1);
        assert_eq!(Claim::new(shared, 3, 2, false).losers().count(), 0);
        let c = Claim::new(shared, 3, 2, true);
        assert_eq!(c.losers().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(c.after(2), nobody.with(2, WRITE));
    }
}
