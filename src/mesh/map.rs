//! A hash map that is cheap to copy: a clone takes a reference to the root, and a change copies only the nodes on the
//! way to its entry.
//!
//! A trie over the bits of the hash, sixteen ways at each node, with up to sixteen entries in a leaf. A map of that
//! size is one leaf, and one of 100,000 entries is four nodes deep: a look-up costs about what it costs in
//! [`std::collections::HashMap`], and a change a few microseconds, however large the map is.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::slice;
use std::sync::Arc;

const BITS: u32 = 4;
const WIDTH: usize = 1 << BITS;
/// A leaf with more entries is split, unless the bits of the hash have run out.
const MAX_LEAF: usize = 16;

pub(super) struct Map<K, V> {
    root: Node<K, V>,
    len: usize,
    hasher: RandomState,
}

enum Node<K, V> {
    Empty,
    Leaf(Arc<[Entry<K, V>]>),
    Branch(Arc<[Node<K, V>; WIDTH]>),
}

#[derive(Clone)]
struct Entry<K, V> {
    hash: u64,
    key: K,
    value: V,
}

impl<K, V> Map<K, V> {
    /// The number of entries.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The value whose key hashes like `key` and for which `is` holds.
    pub(super) fn find<Q: Hash + ?Sized>(&self, key: &Q, is: impl Fn(&K) -> bool) -> Option<&V> {
        let hash = self.hasher.hash_one(key);
        let (mut node, mut bits) = (&self.root, hash);
        loop {
            match node {
                Node::Empty => return None,
                Node::Leaf(entries) => {
                    return entries.iter().find(|e| e.hash == hash && is(&e.key)).map(|e| &e.value);
                }
                Node::Branch(children) => {
                    node = &children[slot(bits)];
                    bits >>= BITS;
                }
            }
        }
    }

    pub(super) fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.find(key, |k| k.borrow() == key)
    }

    /// All entries, in no particular order.
    pub(super) fn iter(&self) -> Iter<'_, K, V> {
        Iter { leaf: [].iter(), nodes: vec![slice::from_ref(&self.root).iter()] }
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Clone + Hash + Eq, V: Clone> Map<K, V> {
    /// Sets the value of a key.
    pub(super) fn insert(&mut self, key: K, value: V) {
        let hash = self.hasher.hash_one(&key);
        if self.root.insert(0, Entry { hash, key, value }) {
            self.len += 1;
        }
    }

    pub(super) fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        // Looked for first: nothing must be copied for a key that is not there.
        if self.get(key).is_some() {
            self.root.remove(0, self.hasher.hash_one(key), key);
            self.len -= 1;
        }
    }

    /// Changes the value of a key in place, from the default if it has none. An entry with the default is none.
    pub(super) fn update(&mut self, key: &K, change: impl FnOnce(&mut V))
    where
        V: Default + PartialEq,
    {
        if self.get(key).is_none() {
            let mut value = V::default();
            change(&mut value);
            if value != V::default() {
                self.insert(key.clone(), value);
            }
            return;
        }
        let hash = self.hasher.hash_one(key);
        let Some(value) = self.root.get_mut(0, hash, key) else { return };
        change(value);
        if *value == V::default() {
            self.remove(key);
        }
    }
}

impl<K: Clone + Eq, V: Clone> Node<K, V> {
    /// Whether the key is new.
    fn insert(&mut self, depth: u32, new: Entry<K, V>) -> bool {
        match self {
            Self::Empty => *self = Self::Leaf(Arc::new([new])),
            Self::Leaf(entries) => {
                if let Some(found) = position(entries, new.hash, &new.key) {
                    Arc::make_mut(entries)[found] = new;
                    return false;
                }
                if entries.len() < MAX_LEAF || depth * BITS >= u64::BITS {
                    *entries = entries.iter().cloned().chain([new]).collect();
                } else {
                    let mut parts = [const { Vec::new() }; WIDTH];
                    for entry in entries.iter().cloned().chain([new]) {
                        parts[slot(entry.hash >> (depth * BITS))].push(entry);
                    }
                    *self = Self::Branch(Arc::new(parts.map(Self::of)));
                }
            }
            Self::Branch(children) => {
                let slot = slot(new.hash >> (depth * BITS));
                return Arc::make_mut(children)[slot].insert(depth + 1, new);
            }
        }
        true
    }

    fn of(entries: Vec<Entry<K, V>>) -> Self {
        if entries.is_empty() { Self::Empty } else { Self::Leaf(entries.into()) }
    }

    fn get_mut<Q: Eq + ?Sized>(&mut self, depth: u32, hash: u64, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        match self {
            Self::Empty => None,
            Self::Leaf(entries) => {
                let found = position(entries, hash, key)?;
                Some(&mut Arc::make_mut(entries)[found].value)
            }
            Self::Branch(children) => {
                let slot = slot(hash >> (depth * BITS));
                Arc::make_mut(children)[slot].get_mut(depth + 1, hash, key)
            }
        }
    }

    fn remove<Q: Eq + ?Sized>(&mut self, depth: u32, hash: u64, key: &Q)
    where
        K: Borrow<Q>,
    {
        match self {
            Self::Empty => {}
            Self::Leaf(entries) => {
                let Some(found) = position(entries, hash, key) else { return };
                *self = match entries.len() {
                    1 => Self::Empty,
                    _ => Self::Leaf(entries[..found].iter().chain(&entries[found + 1..]).cloned().collect()),
                };
            }
            Self::Branch(children) => {
                let children = Arc::make_mut(children);
                children[slot(hash >> (depth * BITS))].remove(depth + 1, hash, key);
                // A branch with nothing but a leaf is that leaf, so that a map that shrinks gets shallow again.
                let mut left = children.iter().filter(|child| !matches!(child, Self::Empty));
                let only = match (left.next(), left.next()) {
                    (None, _) => Some(Self::Empty),
                    (Some(only @ Self::Leaf(_)), None) => Some(only.clone()),
                    _ => None,
                };
                if let Some(only) = only {
                    *self = only;
                }
            }
        }
    }
}

fn slot(bits: u64) -> usize {
    bits as usize % WIDTH
}

fn position<K, V, Q: Eq + ?Sized>(entries: &[Entry<K, V>], hash: u64, key: &Q) -> Option<usize>
where
    K: Borrow<Q>,
{
    entries.iter().position(|e| e.hash == hash && e.key.borrow() == key)
}

pub(super) struct Iter<'a, K, V> {
    leaf: slice::Iter<'a, Entry<K, V>>,
    nodes: Vec<slice::Iter<'a, Node<K, V>>>,
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.leaf.next() {
                return Some((&entry.key, &entry.value));
            }
            match self.nodes.last_mut()?.next() {
                Some(Node::Empty) => {}
                Some(Node::Leaf(entries)) => self.leaf = entries.iter(),
                Some(Node::Branch(children)) => self.nodes.push(children.iter()),
                None => drop(self.nodes.pop()),
            }
        }
    }
}

impl<K, V> Clone for Map<K, V> {
    fn clone(&self) -> Self {
        Self { root: self.root.clone(), len: self.len, hasher: self.hasher.clone() }
    }
}

impl<K, V> Clone for Node<K, V> {
    fn clone(&self) -> Self {
        match self {
            Self::Empty => Self::Empty,
            Self::Leaf(entries) => Self::Leaf(entries.clone()),
            Self::Branch(children) => Self::Branch(children.clone()),
        }
    }
}

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Self { root: Node::Empty, len: 0, hasher: RandomState::new() }
    }
}

impl<K: Hash + Eq, V: PartialEq> PartialEq for Map<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().all(|(key, value)| other.get(key) == Some(value))
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Map<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::hash::Hasher;

    use proptest::prelude::*;

    use super::*;

    /// A key whose hash is one of few, so that leaves can't be split.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Colliding(u16);

    impl Hash for Colliding {
        fn hash<H: Hasher>(&self, state: &mut H) {
            (self.0 % 3).hash(state);
        }
    }

    fn depth<K, V>(node: &Node<K, V>) -> usize {
        match node {
            Node::Empty => 0,
            Node::Leaf(_) => 1,
            Node::Branch(children) => 1 + children.iter().map(depth).max().unwrap_or(0),
        }
    }

    fn same<K: Hash + Eq + Copy + fmt::Debug>(map: &Map<K, u32>, model: &HashMap<K, u32>) -> Result<(), TestCaseError> {
        prop_assert_eq!(map.len(), model.len());
        prop_assert_eq!(&map.iter().map(|(k, v)| (*k, *v)).collect::<HashMap<_, _>>(), model);
        for (key, value) in model {
            prop_assert_eq!(map.get(key), Some(value));
        }
        Ok(())
    }

    fn runs_like_a_hash_map<K: Hash + Eq + Copy + fmt::Debug>(
        ops: &[(u8, u16, u32)],
        key: impl Fn(u16) -> K,
    ) -> Result<(), TestCaseError> {
        let (mut map, mut model) = (Map::default(), HashMap::new());
        let mut before = Vec::new();
        for (op, k, value) in ops {
            let k = key(*k);
            match op {
                0..4 => {
                    map.insert(k, *value);
                    model.insert(k, *value);
                }
                4..7 => {
                    map.remove(&k);
                    model.remove(&k);
                }
                7..9 => {
                    map.update(&k, |v| *v = v.wrapping_add(*value));
                    let v = model.entry(k).or_default();
                    *v = v.wrapping_add(*value);
                    if *v == 0 {
                        model.remove(&k);
                    }
                }
                _ => before.push((map.clone(), model.clone())),
            }
            prop_assert_eq!(map.get(&k), model.get(&k));
        }
        same(&map, &model)?;
        // What was cloned has not changed since.
        before.iter().try_for_each(|(map, model)| same(map, model))
    }

    proptest! {
        #[test]
        fn it_holds_what_a_hash_map_holds_and_so_does_each_clone(
            ops in prop::collection::vec((0_u8..10, 0_u16..400, 0_u32..3), 0..1500),
        ) {
            runs_like_a_hash_map(&ops, |k| k)?;
        }

        #[test]
        fn keys_of_the_same_hash_are_told_apart(ops in prop::collection::vec((0_u8..10, 0_u16..80, 0_u32..3), 0..300)) {
            runs_like_a_hash_map(&ops, Colliding)?;
        }
    }

    #[test]
    fn a_map_that_has_shrunk_is_shallow_again() {
        let mut map = Map::default();
        (0..10_000_u32).for_each(|n| map.insert(n, ()));
        assert!((3..6).contains(&depth(&map.root)), "{}", depth(&map.root));
        (1..10_000_u32).for_each(|n| map.remove(&n));
        assert_eq!((map.len(), depth(&map.root)), (1, 1));
    }
}
