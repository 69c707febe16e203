pub fn explain(_: &super::Plan) -> String { String::new() }
