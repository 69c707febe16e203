pub enum Outer { Apache }
pub fn explain_outer(_: &super::Plan, _: Outer) -> String { String::new() }
