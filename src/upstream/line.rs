//! The order in which those who wait for a place are let in.
//!
//! A client is an address (of IPv6 a network of /64, which one machine usually has whole), and clients take turns: one
//! that has a hundred requests waiting has the next place as often as one that has one. Within a client who came first
//! goes first. That is so within each [`Class`]; among the classes the higher goes first, and of every four places that
//! are handed on one is the middle class's before all and one the lowest's ([`TURNS`]), so that none waits for ever.
//!
//! Every step takes the same short time however many wait, and nobody costs more than 256 bytes.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    task::Waker,
};

use crate::limits;

/// Who asks for a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    pub class: Class,
    pub client: Client,
}

/// How soon a request is let in, the soonest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// A look whether the application is well.
    Health,
    /// A request of somebody who has a session.
    Session,
    Other,
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// `None`: all whose address is not known.
    At(Option<limits::Client>),
    /// Another process, for a request that waits there.
    Process,
}

impl Client {
    /// The client at `address`.
    pub fn of(address: Option<IpAddr>) -> Self {
        Self::At(address.map(limits::Client::new))
    }
}

/// Those who wait, and those who have been called and have not come yet.
///
/// Whoever waits has a number, which is its own until [`Self::leave`].
#[derive(Debug)]
pub(super) struct Line {
    waiters: Arena<Waiter>,
    clients: Arena<Turn>,
    known: HashMap<(Class, Client), u32>,
    classes: [Room; 3],
    /// Counts those who were called.
    called: usize,
    waiting: usize,
    /// Of those, the ones of clients.
    requests: usize,
}

#[derive(Debug)]
enum Waiter {
    Waiting {
        turn: u32,
        waker: Waker,
    },
    Called,
    /// For one who comes later and is to wait in its stead.
    SentAway,
}

/// The requests of one client in one class, of which there is at least one.
#[derive(Debug)]
struct Turn {
    key: (Class, Client),
    waiters: List,
    count: usize,
}

/// The clients of one class, the next one first.
#[derive(Clone, Copy, Debug, Default)]
struct Room {
    turns: List,
    /// The client that has been seen with the most requests, as far as it is still here.
    busiest: Option<u32>,
}

/// How it stands with one who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Waiting,
    Called,
    SentAway,
}

impl Line {
    pub(super) fn new() -> Self {
        Self {
            waiters: Arena::new(),
            clients: Arena::new(),
            known: HashMap::new(),
            classes: Default::default(),
            called: 0,
            waiting: 0,
            requests: 0,
        }
    }

    /// Those who wait, of all classes.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Those of them that are requests.
    pub(super) fn requests(&self) -> usize {
        self.requests
    }

    /// Who `who` is here. Of a client's checks of health only one at a time goes before all others: anybody may ask for that page.
    pub(super) fn placed(&self, who: Who) -> Who {
        let another = who.class == Class::Health && self.known.contains_key(&(who.class, who.client));
        if another { Who { class: Class::Other, ..who } } else { who }
    }

    /// Takes `who` in, at the end of its client's requests; answers its number.
    pub(super) fn join(&mut self, who: Who) -> u32 {
        let key = (who.class, who.client);
        let room = &mut self.classes[who.class as usize];
        let turn = match self.known.entry(key) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                let turn = self.clients.insert(Turn { key, waiters: List::default(), count: 0 });
                self.clients.append(&mut room.turns, turn);
                *new.insert(turn)
            }
        };
        let number = self.waiters.insert(Waiter::Waiting { turn, waker: Waker::noop().clone() });
        let client = self.clients.get_mut(turn);
        self.waiters.append(&mut client.waiters, number);
        client.count += 1;
        let count = client.count;
        if room.busiest.is_none_or(|busiest| count > self.clients.get(busiest).count) {
            room.busiest = Some(turn);
        }
        self.waiting += 1;
        self.requests += usize::from(who.client != Client::Process);
        number
    }

    /// Calls the next one, and answers how it is woken.
    pub(super) fn call(&mut self) -> Option<Waker> {
        let first = TURNS[self.called % TURNS.len()];
        let waits = |class: &Class| self.classes[*class as usize].turns.first;
        let turn = [first, Class::Health, Class::Session, Class::Other].iter().find_map(waits)?;
        self.called = self.called.wrapping_add(1);
        let number = self.clients.get(turn).waiters.first.expect(NOT_EMPTY);
        let waker = self.take_out(number, Waiter::Called);
        if self.clients.has(turn) {
            let room = &mut self.classes[self.clients.get(turn).key.0 as usize];
            self.clients.unlink(&mut room.turns, turn);
            self.clients.append(&mut room.turns, turn);
        }
        waker
    }

    /// Sends a request away so that one of `who` can wait in its stead; answers how it is woken, or `None` where none has
    /// less of a right to wait.
    ///
    /// That is the last one of the client with the most: of its class, if it has still as many as `who` without it, and of a
    /// class below for one that has none waiting.
    pub(super) fn make_room(&mut self, who: Who) -> Option<Waker> {
        let own = self.known.get(&(who.class, who.client)).map_or(0, |turn| self.clients.get(*turn).count);
        let room = |class: Class| self.classes[class as usize];
        let is_client = |turn: &u32| self.clients.get(*turn).key.1 != Client::Process;
        let below = [Class::Other, Class::Session].into_iter().filter(|class| own == 0 && *class > who.class).map(room);
        let mut below = below.flat_map(|room| [room.busiest, room.turns.last]).flatten().filter(is_client);
        let turn = below.next().or_else(|| {
            room(who.class).busiest.filter(is_client).filter(|turn| self.clients.get(*turn).count > own + 1)
        })?;
        let number = self.clients.get(turn).waiters.last.expect(NOT_EMPTY);
        self.take_out(number, Waiter::SentAway)
    }

    /// How it stands with `number`, who is to be woken by `waker` while it waits.
    pub(super) fn look(&mut self, number: u32, waker: &Waker) -> Standing {
        match self.waiters.get_mut(number) {
            Waiter::Waiting { waker: known, .. } => {
                known.clone_from(waker);
                Standing::Waiting
            }
            Waiter::Called => Standing::Called,
            Waiter::SentAway => Standing::SentAway,
        }
    }

    /// `number` leaves, wherever it stands; answers where that was.
    pub(super) fn leave(&mut self, number: u32) -> Standing {
        let standing = match self.waiters.get(number) {
            Waiter::Waiting { .. } => {
                self.take_out(number, Waiter::SentAway);
                Standing::Waiting
            }
            Waiter::Called => Standing::Called,
            Waiter::SentAway => Standing::SentAway,
        };
        self.waiters.remove(number);
        if self.waiters.count == 0 && self.waiters.nodes.len() > KEPT {
            // What a rush has taken is given back at its end.
            *self = Self { called: self.called, ..Self::new() };
        }
        standing
    }

    /// Takes `number` out of its client's requests; answers how it is woken.
    fn take_out(&mut self, number: u32, instead: Waiter) -> Option<Waker> {
        let Waiter::Waiting { turn, waker } = std::mem::replace(self.waiters.get_mut(number), instead) else {
            return None;
        };
        self.waiting -= 1;
        self.requests -= usize::from(self.clients.get(turn).key.1 != Client::Process);
        let client = self.clients.get_mut(turn);
        self.waiters.unlink(&mut client.waiters, number);
        client.count -= 1;
        if client.count == 0 {
            let key = client.key;
            let room = &mut self.classes[key.0 as usize];
            self.clients.unlink(&mut room.turns, turn);
            if room.busiest == Some(turn) {
                room.busiest = None;
            }
            self.clients.remove(turn);
            self.known.remove(&key);
        }
        Some(waker)
    }
}

/// Which class is looked for first, place by place; where none of it waits, the highest that does.
const TURNS: [Class; 4] = [Class::Health, Class::Session, Class::Health, Class::Other];

/// Those whose room is kept when nobody waits.
const KEPT: usize = 1024;

/// What one who waits costs at most, as a client of its own.
#[cfg(test)]
const BYTES: usize = 256;

/// Values with numbers, which can be in one list each.
#[derive(Debug)]
struct Arena<T> {
    nodes: Vec<Node<T>>,
    free: Option<u32>,
    count: usize,
}

#[derive(Debug)]
struct Node<T> {
    before: Option<u32>,
    /// In a list, or among those that are free.
    after: Option<u32>,
    value: Option<T>,
}

#[derive(Clone, Copy, Debug, Default)]
struct List {
    first: Option<u32>,
    last: Option<u32>,
}

impl<T> Arena<T> {
    fn new() -> Self {
        Self { nodes: Vec::new(), free: None, count: 0 }
    }

    fn insert(&mut self, value: T) -> u32 {
        self.count += 1;
        if let Some(number) = self.free {
            let node = &mut self.nodes[number as usize];
            self.free = node.after.take();
            node.value = Some(value);
            return number;
        }
        self.nodes.push(Node { before: None, after: None, value: Some(value) });
        u32::try_from(self.nodes.len() - 1).expect("queue.limit is far below")
    }

    /// Gives up `number`, which is in no list.
    fn remove(&mut self, number: u32) {
        let free = self.free.replace(number);
        self.nodes[number as usize] = Node { before: None, after: free, value: None };
        self.count -= 1;
    }

    fn has(&self, number: u32) -> bool {
        self.nodes[number as usize].value.is_some()
    }

    fn get(&self, number: u32) -> &T {
        self.nodes[number as usize].value.as_ref().expect(IN_USE)
    }

    fn get_mut(&mut self, number: u32) -> &mut T {
        self.nodes[number as usize].value.as_mut().expect(IN_USE)
    }

    fn append(&mut self, list: &mut List, number: u32) {
        let before = list.last.replace(number);
        match before {
            Some(before) => self.nodes[before as usize].after = Some(number),
            None => list.first = Some(number),
        }
        self.nodes[number as usize].before = before;
    }

    fn unlink(&mut self, list: &mut List, number: u32) {
        let node = &mut self.nodes[number as usize];
        let (before, after) = (node.before.take(), node.after.take());
        match before {
            Some(before) => self.nodes[before as usize].after = after,
            None => list.first = after,
        }
        match after {
            Some(after) => self.nodes[after as usize].before = before,
            None => list.last = before,
        }
    }
}

const NOT_EMPTY: &str = "a client that is here has a request waiting";
const IN_USE: &str = "a number is used until it is given up";

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, net::Ipv4Addr};

    use proptest::prelude::*;

    use super::*;

    fn who(class: Class, client: u8) -> Who {
        Who { class, client: Client::of(Some(Ipv4Addr::new(10, 0, 0, client).into())) }
    }

    /// Lets `count` come in, one after the other.
    fn called(line: &mut Line, numbers: &mut Vec<(u32, Who)>, count: usize) -> Vec<Who> {
        let call = |_| {
            line.call()?;
            let position =
                numbers.iter().position(|(number, _)| line.look(*number, Waker::noop()) == Standing::Called)?;
            let (number, who) = numbers.remove(position);
            line.leave(number);
            Some(who)
        };
        (0..count).map_while(call).collect()
    }

    fn joined(line: &mut Line, all: impl IntoIterator<Item = Who>) -> Vec<(u32, Who)> {
        all.into_iter().map(|who| (line.join(who), who)).collect()
    }

    #[test]
    fn a_client_with_a_hundred_requests_does_not_keep_one_with_one_waiting() {
        let mut line = Line::new();
        let (many, one) = (who(Class::Other, 1), who(Class::Other, 2));
        let mut numbers = joined(&mut line, std::iter::repeat_n(many, 100).chain([one]));

        assert_eq!(called(&mut line, &mut numbers, 3), [many, one, many]);
    }

    #[test]
    fn of_a_client_one_check_of_health_goes_first() {
        let mut line = Line::new();
        let health = who(Class::Health, 1);
        assert_eq!(line.placed(health), health);
        line.join(health);

        assert_eq!(line.placed(health), who(Class::Other, 1));
        assert_eq!(line.placed(who(Class::Health, 2)), who(Class::Health, 2));
    }

    #[test]
    fn each_class_has_its_share_and_the_higher_the_larger() {
        let mut line = Line::new();
        let [health, session, other] = [Class::Health, Class::Session, Class::Other].map(|class| who(class, 1));
        let mut numbers = joined(&mut line, [other, session, health].into_iter().cycle().take(30));

        assert_eq!(called(&mut line, &mut numbers, 4), [health, session, health, other]);

        let mut line = Line::new();
        let mut numbers = joined(&mut line, [other, session].into_iter().cycle().take(30));
        assert_eq!(called(&mut line, &mut numbers, 4), [session, session, session, other]);
    }

    #[test]
    fn a_network_of_64_bits_is_one_client_and_a_mapped_address_is_what_it_maps() {
        let client = |address: &str| Client::of(Some(address.parse().unwrap()));

        assert_eq!(client("2001:db8::1"), client("2001:db8::ffff:0:0:2"));
        assert_ne!(client("2001:db8::1"), client("2001:db8:0:1::1"));
        assert_eq!(client("::ffff:10.0.0.1"), client("10.0.0.1"));
        assert_ne!(client("::ffff:10.0.0.1"), client("::ffff:10.0.0.2"));
    }

    #[test]
    fn room_is_made_by_the_last_of_whoever_has_the_most_and_never_by_a_higher_class_or_another_process() {
        let mut line = Line::new();
        let process = Who { class: Class::Session, client: Client::Process };
        let (many, one, session) = (who(Class::Other, 1), who(Class::Other, 2), who(Class::Session, 3));
        let numbers = joined(&mut line, [process, process, one, many, many, session]);
        let away = |line: &mut Line| {
            let is_away = |(number, _): &&(u32, Who)| line.look(*number, Waker::noop()) == Standing::SentAway;
            numbers.iter().filter(is_away).map(|(number, _)| *number).collect::<Vec<_>>()
        };

        assert!(line.make_room(one).is_none(), "the other has one more, and would have one less");
        assert!(line.make_room(who(Class::Other, 9)).is_some());
        assert_eq!(away(&mut line), [numbers[4].0]);
        assert!(line.make_room(who(Class::Other, 9)).is_none(), "nobody has two");
        assert!(line.make_room(who(Class::Session, 9)).is_some() && line.make_room(who(Class::Session, 9)).is_some());
        assert!(line.make_room(who(Class::Session, 9)).is_none(), "only sessions are left");
        assert!(line.make_room(who(Class::Health, 9)).is_some());
        assert!(line.make_room(who(Class::Health, 9)).is_none(), "what is left is another process's");
        assert_eq!((line.requests(), line.waiting()), (0, 2));
    }

    #[test]
    fn in_a_full_line_all_clients_come_to_have_equally_many() {
        let mut line = Line::new();
        let (many, few) = (who(Class::Other, 1), who(Class::Other, 2));
        joined(&mut line, [many; 8]);

        let mut taken = 0;
        while line.make_room(few).is_some() {
            line.join(few);
            taken += 1;
            assert!(line.make_room(many).is_none());
        }

        assert_eq!((taken, line.requests()), (4, 8));
    }

    #[test]
    fn whoever_waits_costs_little_and_nothing_once_it_has_gone() {
        let mut line = Line::new();
        let numbers: Vec<_> = (0..100_000_u32)
            .map(|client| {
                line.join(Who { class: Class::Other, client: Client::of(Some(Ipv4Addr::from_bits(client).into())) })
            })
            .collect();
        let clients = line.clients.nodes.capacity() * size_of::<Node<Turn>>();
        let waiters = line.waiters.nodes.capacity() * size_of::<Node<Waiter>>();
        // A table has a byte beside each slot, and is at most seven eighths full.
        let known = line.known.capacity() * 8 / 7 * (size_of::<((Class, Client), u32)>() + 1);

        assert!(
            (clients + waiters + known) / numbers.len() <= BYTES,
            "{}",
            (clients + waiters + known) / numbers.len()
        );
        for number in numbers {
            line.leave(number);
        }
        assert_eq!(line.clients.nodes.capacity() + line.waiters.nodes.capacity() + line.known.capacity(), 0);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Join(usize, u8),
        Call,
        Leave(prop::sample::Index),
        MakeRoom(usize, u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..3_usize, 0..4_u8).prop_map(|(class, client)| Step::Join(class, client)),
            2 => Just(Step::Call),
            2 => any::<prop::sample::Index>().prop_map(Step::Leave),
            1 => (0..3_usize, 0..6_u8).prop_map(|(class, client)| Step::MakeRoom(class, client)),
        ];
        prop::collection::vec(step, 1..200)
    }

    const CLASSES: [Class; 3] = [Class::Health, Class::Session, Class::Other];

    proptest! {
        /// Against lists that are searched from end to end.
        #[test]
        fn nobody_is_lost_and_the_order_is_kept_whatever_happens(steps in steps()) {
            let mut line = Line::new();
            // By class: the clients in the order of their turns, with what each has waiting.
            let mut model: [VecDeque<(Client, VecDeque<u32>)>; 3] = Default::default();
            // Called or sent away, and still here.
            let mut out = Vec::new();
            let mut turn = 0;
            for step in steps {
                match step {
                    Step::Join(class, client) => {
                        let who = who(CLASSES[class], client);
                        let number = line.join(who);
                        match model[class].iter_mut().find(|(client, _)| *client == who.client) {
                            Some((_, waiting)) => waiting.push_back(number),
                            None => model[class].push_back((who.client, [number].into())),
                        }
                    }
                    Step::Call => {
                        let first = TURNS[turn % TURNS.len()] as usize;
                        let class = [first, 0, 1, 2].into_iter().find(|class| !model[*class].is_empty());
                        prop_assert_eq!(line.call().is_some(), class.is_some());
                        if let Some(class) = class {
                            turn += 1;
                            let (client, mut waiting) = model[class].pop_front().unwrap();
                            let number = waiting.pop_front().unwrap();
                            prop_assert_eq!(line.look(number, Waker::noop()), Standing::Called);
                            if !waiting.is_empty() {
                                model[class].push_back((client, waiting));
                            }
                            out.push(number);
                        }
                    }
                    Step::MakeRoom(class, client) => {
                        let who = who(CLASSES[class], client);
                        let own = model[class].iter().find(|(client, _)| *client == who.client);
                        let own = own.map_or(0, |(_, waiting)| waiting.len());
                        if line.make_room(who).is_some() {
                            let away = |number: &u32| line.look(*number, Waker::noop()) == Standing::SentAway;
                            let all: Vec<u32> =
                                model.iter().flatten().flat_map(|(_, waiting)| waiting).copied().collect();
                            let mut gone = all.into_iter().filter(away);
                            let number = gone.next().unwrap();
                            prop_assert_eq!(gone.next(), None);
                            let (left, (_, waiting)) = model
                                .iter_mut()
                                .enumerate()
                                .flat_map(|(class, clients)| clients.iter_mut().map(move |client| (class, client)))
                                .find(|(_, (_, waiting))| waiting.contains(&number))
                                .unwrap();
                            prop_assert!(left > class && own == 0 || left == class && waiting.len() > own + 1);
                            prop_assert_eq!(waiting.pop_back(), Some(number), "the last of its client");
                            out.push(number);
                        }
                    }
                    Step::Leave(index) => {
                        let waiting = model.iter().flatten().flat_map(|(_, waiting)| waiting);
                        let all: Vec<u32> = waiting.copied().chain(out.iter().copied()).collect();
                        if let Some(number) = (!all.is_empty()).then(|| all[index.index(all.len())]) {
                            let waits = !out.contains(&number);
                            prop_assert_eq!(line.leave(number) == Standing::Waiting, waits);
                            out.retain(|other| *other != number);
                            for clients in &mut model {
                                for (_, waiting) in clients {
                                    waiting.retain(|other| *other != number);
                                }
                            }
                        }
                    }
                }
                for clients in &mut model {
                    clients.retain(|(_, waiting)| !waiting.is_empty());
                }
                let waiting: usize = model.iter().flatten().map(|(_, waiting)| waiting.len()).sum();
                prop_assert_eq!((line.waiting(), line.requests()), (waiting, waiting));
                prop_assert_eq!(line.waiters.count, waiting + out.len());
                prop_assert_eq!(line.clients.count, model.iter().map(VecDeque::len).sum::<usize>());
                prop_assert_eq!(line.known.len(), line.clients.count);
            }
        }
    }
}
