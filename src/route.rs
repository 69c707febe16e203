//! Which route a request belongs to: its host first, then the longest prefix of whole path segments.
//!
//! How a path is read is [`crate::http::path`]'s business; what a route does with a request is not known here.

use std::{borrow::Cow, collections::HashMap, ptr};

use crate::{
    config::{HostName, PathPrefix},
    http::{authority, path::Path},
};

/// Routes by host and prefix.
///
/// A tree of segments per host: a look-up costs one binary search per segment of the prefix that is found, however
/// many routes there are, and allocates nothing unless a segment of the path has an escape.
#[derive(Clone, Debug)]
pub struct RouteTable<T> {
    hosts: HashMap<String, Node<T>>,
    any_host: Node<T>,
}

impl<T> RouteTable<T> {
    /// Of two routes with the same host and prefix the first stays; a configuration with two is refused before.
    pub fn new(routes: impl IntoIterator<Item = (Option<HostName>, PathPrefix, T)>) -> Self {
        let mut table = Self { hosts: HashMap::new(), any_host: Node::default() };
        for (host, prefix, value) in routes {
            let node = match host {
                Some(host) => table.hosts.entry(host.as_str().to_owned()).or_default(),
                None => &mut table.any_host,
            };
            node.insert(&prefix, value);
        }
        table
    }

    /// The value of the route with just this host and prefix.
    pub fn get(&self, host: Option<&HostName>, prefix: &PathPrefix) -> Option<&T> {
        let first = match host {
            Some(host) => self.hosts.get(host.as_str())?,
            None => &self.any_host,
        };
        let mut segments = prefix.as_str().split('/').skip(1);
        let node =
            segments.try_fold(first, |node, segment| Some(&node.children[node.child(segment.as_bytes()).ok()?].1));
        node?.value.as_ref()
    }

    /// The route for `path` on `host`.
    ///
    /// A route of the host itself comes before any route without a host, even one with a longer prefix; where none of
    /// the host's own matches, those without a host are asked. In `host` the letter case, a trailing dot and a
    /// port make no difference. Paths are case-sensitive.
    pub fn find(&self, host: &str, path: &Path<'_>) -> Option<Match<'_, T>> {
        let own = if self.hosts.is_empty() { None } else { self.hosts.get(authority::host_name(host).as_ref()) };
        own.and_then(|node| node.find(path)).or_else(|| self.any_host.find(path))
    }

    /// The routes for what others may make of `path` on `host`: all that [`Path::read_by_others`] does, and its escapes alone, as a
    /// WSGI server undoes them; where these are other paths at all. Each route once.
    pub fn find_as_others(&self, host: &str, path: &Path<'_>) -> [Option<&T>; 2] {
        let Some(read) = path.read_by_others() else { return [None, None] };
        let own = self.hosts.get(authority::host_name(host).as_ref());
        let find =
            |path: &[u8]| own.and_then(|node| node.find_decoded(path)).or_else(|| self.any_host.find_decoded(path));
        let first = find(&read);
        let second = find(&path.decoded_merged());
        [first, second.filter(|second| !first.is_some_and(|first| ptr::eq(first, *second)))]
    }
}

/// A route, and where its prefix ends in the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match<'t, T> {
    pub value: &'t T,
    /// Where what follows the prefix begins, in bytes of the raw path: at one slash, or at the end.
    pub remainder: usize,
    /// The path is the prefix without its slash.
    pub bare: bool,
}

impl<T> Match<'_, T> {
    /// `path_and_query` without the prefix; the bare form becomes `/`.
    ///
    /// The path in it must be the one the match was made from.
    pub fn strip<'a>(&self, path_and_query: &'a str) -> Cow<'a, str> {
        let rest = path_and_query.get(self.remainder..).expect("the match was made from this path");
        match rest.as_bytes().first() {
            Some(b'/') => Cow::Borrowed(rest),
            Some(_) => Cow::Owned(format!("/{rest}")),
            None => Cow::Borrowed("/"),
        }
    }
}

/// What is known of one prefix.
#[derive(Clone, Debug)]
struct Node<T> {
    value: Option<T>,
    /// By segment, sorted.
    children: Vec<(Box<[u8]>, Self)>,
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self { value: None, children: Vec::new() }
    }
}

impl<T> Node<T> {
    fn insert(&mut self, prefix: &PathPrefix, value: T) {
        let mut node = self;
        // The first piece is what stands before the leading slash: nothing.
        for segment in prefix.as_str().split('/').skip(1) {
            let at = node.child(segment.as_bytes()).unwrap_or_else(|at| {
                node.children.insert(at, (segment.as_bytes().into(), Self::default()));
                at
            });
            node = &mut node.children[at].1;
        }
        node.value.get_or_insert(value);
    }

    fn find(&self, path: &Path<'_>) -> Option<Match<'_, T>> {
        let mut node = self;
        let mut longest = node.value.as_ref().map(|value| (value, path.root()));
        for segment in path.segments() {
            let Ok(at) = node.child(&segment.decoded) else { break };
            node = &node.children[at].1;
            longest = node.value.as_ref().map(|value| (value, segment.rest)).or(longest);
        }
        longest.map(|(value, remainder)| Match { value, remainder, bare: remainder == path.raw().len() })
    }

    fn find_decoded(&self, path: &[u8]) -> Option<&T> {
        let mut node = self;
        let mut longest = node.value.as_ref();
        for segment in path.split(|byte| *byte == b'/').filter(|segment| !segment.is_empty()) {
            let Ok(at) = node.child(segment) else { break };
            node = &node.children[at].1;
            longest = node.value.as_ref().or(longest);
        }
        longest
    }

    /// Where the child for `segment` is, or would be.
    fn child(&self, segment: &[u8]) -> Result<usize, usize> {
        self.children.binary_search_by(|(name, _)| name.as_ref().cmp(segment))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(routes: &[(&str, &'static str)]) -> RouteTable<&'static str> {
        RouteTable::new(routes.iter().map(|(host, prefix)| {
            let name = (!host.is_empty()).then(|| HostName::parse(host).unwrap());
            (name, PathPrefix::parse(prefix).unwrap(), *prefix)
        }))
    }

    fn find(table: &RouteTable<&'static str>, host: &str, path: &str) -> Option<&'static str> {
        table.find(host, &Path::read(path).unwrap()).map(|found| *found.value)
    }

    #[test]
    fn the_longest_prefix_of_whole_segments_is_found() {
        let table = table(&[("", "/da/"), ("", "/da/ws"), ("", "/a/b/c/d"), ("", "/x")]);
        for (path, expected) in [
            ("/da", Some("/da/")),
            ("/da/", Some("/da/")),
            ("/da/x", Some("/da/")),
            ("/da//x", Some("/da/")),
            ("/%64a/x", Some("/da/")),
            ("/dashboard", None),
            ("/DA/x", None),
            ("/d", None),
            ("/", None),
            ("/da/ws", Some("/da/ws")),
            ("/da/ws/socket.io/", Some("/da/ws")),
            ("/da//ws/socket.io/", Some("/da/ws")),
            ("//da/ws//socket.io/", Some("/da/ws")),
            ("/da/wsfoo", Some("/da/")),
            ("/da%2Fws/x", None),
            ("/da/ws%2Fx", Some("/da/")),
            ("/da%2Fx", None),
            ("/a/b/c", None),
            ("/a/b/c/d/e", Some("/a/b/c/d")),
            ("/xaccel/usr/file", None),
        ] {
            assert_eq!(find(&table, "h", path), expected, "{path}");
        }
    }

    #[test]
    fn the_root_matches_everything_that_nothing_longer_does() {
        let table = table(&[("", "/"), ("", "/da"), ("", "/a/b/c")]);

        assert_eq!(find(&table, "h", "/a/b"), Some("/"));
        assert_eq!(find(&table, "h", "/a/b/x"), Some("/"));
        assert_eq!(find(&table, "h", "/index.html"), Some("/"));
        assert_eq!(find(&table, "h", "/dashboard"), Some("/"));
        assert_eq!(find(&table, "h", "/"), Some("/"));
        assert_eq!(find(&table, "h", "/da"), Some("/da"));
    }

    #[test]
    fn routes_of_the_host_come_first_and_the_others_after() {
        let table =
            table(&[("", "/long/prefix"), ("one.example", "/long"), ("one.example", "/own"), ("[::1]", "/six")]);
        for (host, path, expected) in [
            ("one.example", "/long/prefix", Some("/long")),
            ("two.example", "/long/prefix", Some("/long/prefix")),
            ("two.example", "/own", None),
            ("ONE.Example.:8443", "/own", Some("/own")),
            ("one.example:80", "/other", None),
            ("[0::1]:443", "/six", Some("/six")),
            ("", "/long/prefix", Some("/long/prefix")),
        ] {
            assert_eq!(find(&table, host, path), expected, "{host} {path}");
        }
    }

    #[test]
    fn others_may_read_a_path_with_all_that_is_odd_undone_or_with_its_escapes_alone() {
        let table = table(&[("", "/"), ("", "/staff"), ("", "/staff/open")]);
        for (path, expected) in [
            ("/staff%2F;/open", [Some("/staff/open"), Some("/staff")]),
            ("/staff%2Fx", [Some("/staff"), None]),
            ("/staff;x", [Some("/staff"), Some("/")]),
            ("/staff/x", [None, None]),
        ] {
            let found = table.find_as_others("h", &Path::read(path).unwrap());
            assert_eq!(found.map(Option::<&&str>::copied), expected, "{path}");
        }
    }

    #[test]
    fn a_host_whose_routes_do_not_match_falls_back() {
        let table = table(&[("one.example", "/own"), ("", "/")]);

        assert_eq!(find(&table, "one.example", "/other"), Some("/"));
    }

    #[test]
    fn stripping_leaves_one_slash_and_the_query() {
        let table = table(&[("", "/ws"), ("", "/da/ws/"), ("", "/")]);
        for (target, expected, bare) in [
            ("/ws/socket.io/?transport=polling", "/socket.io/?transport=polling", false),
            ("//ws//socket.io", "/socket.io", false),
            ("/da//ws/socket.io/?a=/b", "/socket.io/?a=/b", false),
            ("/ws", "/", true),
            ("/ws?x=1", "/?x=1", true),
            ("/ws/", "/", false),
            ("/ws//", "/", false),
            ("//ws?x", "/?x", true),
            ("/da/ws/a%2Fb//c", "/a%2Fb//c", false),
            ("/other?q", "/other?q", false),
            ("//other", "/other", false),
        ] {
            let path = Path::read(target.split('?').next().unwrap()).unwrap();
            let found = table.find("h", &path).unwrap();
            assert_eq!(found.strip(target), expected, "{target}");
            assert_eq!(found.bare, bare, "{target}");
        }
    }

    #[test]
    fn a_thousand_routes_are_told_apart() {
        let routes = (0..1000).map(|n| (None, PathPrefix::parse(&format!("/site/{n}/app")).unwrap(), n));
        let table = RouteTable::new(routes);

        for n in 0..1000 {
            let raw = format!("/site/{n}/app/page");
            let found = table.find("h", &Path::read(&raw).unwrap()).unwrap();
            assert_eq!((*found.value, &raw[found.remainder..]), (n, "/page"));
        }
    }

    #[test]
    fn the_first_of_two_routes_with_one_prefix_stays() {
        let prefix = |text| PathPrefix::parse(text).unwrap();
        let table = RouteTable::new([(None, prefix("/da"), 1), (None, prefix("/da/"), 2)]);

        assert_eq!(*table.find("h", &Path::read("/da").unwrap()).unwrap().value, 1);
    }

    proptest! {
        #[test]
        fn nothing_that_is_found_lies_outside_its_prefix(raw in "/((da|ws|x|staff|open|[./\\\\;%]|%2[eEfF]|%5[cC]|%64a)/?){0,8}") {
            crate::properties::reading(&raw);
        }

        #[test]
        fn any_path_and_host_is_found_or_not_without_a_panic(host in "\\PC*", raw in "/\\PC*") {
            let table = table(&[("one.example", "/"), ("", "/da")]);
            if let Ok(path) = Path::read(&raw) {
                let found = table.find(&host, &path);
                prop_assert!(found.is_none_or(|found| found.remainder <= raw.len()));
            }
        }
    }
}
