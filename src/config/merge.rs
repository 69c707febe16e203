//! An overlay on a configuration that comes from elsewhere.

use super::{
    plan::{HostName, PathPrefix},
    tree::{Node, Value},
};

/// Lays `over` on `base`.
///
/// Mappings are merged key by key. Routes are merged by host and prefix, and new ones are added. Whatever else is in
/// `over`, other lists included, takes the place of what is in `base`.
pub(super) fn merge(base: Node, over: Node) -> Node {
    merge_below(base, over, "")
}

fn merge_below(base: Node, over: Node, at: &str) -> Node {
    match (base.value, over.value) {
        (Value::Mapping(mut entries), Value::Mapping(new)) => {
            for (key, node) in new {
                match entries.iter_mut().find(|(known, _)| known.name == key.name) {
                    Some((known, place)) => {
                        // A path of two levels is all that is asked for.
                        let at = if at.is_empty() { key.name.clone() } else { format!("{at}.{}", key.name) };
                        let before = std::mem::replace(place, Node::scalar("", true, node.position));
                        *place = merge_below(before, node, &at);
                        known.position = key.position;
                    }
                    None => entries.push((key, node)),
                }
            }
            Node { position: over.position, value: Value::Mapping(entries) }
        }
        (Value::Sequence(mut routes), Value::Sequence(new)) if at == "routes" => {
            for node in new {
                match routes.iter_mut().find(|route| is_same_route(route, &node)) {
                    Some(place) => {
                        let before = std::mem::replace(place, Node::scalar("", true, node.position));
                        *place = merge_below(before, node, "routes[]");
                    }
                    None => routes.push(node),
                }
            }
            Node { position: over.position, value: Value::Sequence(routes) }
        }
        // An overlay that is empty, or has only comments.
        (base_value, Value::Scalar { text, plain: true }) if at.is_empty() && text.is_empty() => {
            Node { position: base.position, value: base_value }
        }
        (_, value) => Node { position: over.position, value },
    }
}

fn is_same_route(one: &Node, other: &Node) -> bool {
    let prefix = |node: &Node| PathPrefix::parse(node.get("prefix")?.text()?);
    let host = |node: &Node| node.get("host").and_then(Node::text).and_then(HostName::parse);
    prefix(one).is_some() && prefix(one) == prefix(other) && host(one) == host(other)
}
