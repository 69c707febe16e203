//! stub
use std::path::Path;
use serde::{Deserialize, Serialize};
use crate::admin::Applied;
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct History(Vec<Entry>);
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Entry { pub(super) generation: u64, pub(super) at: String, pub(super) cause: String, pub(super) text: String }
impl History {
    pub(super) fn load(_: &Path, _: &Path) -> Self { Self::default() }
    pub(super) fn push(&mut self, generation: u64, cause: String, text: String) {
        self.0.insert(0, Entry { generation, at: String::new(), cause, text });
    }
    pub(super) fn text(&self) -> Option<&str> { self.0.first().map(|e| e.text.as_str()) }
    pub(super) fn applied(&self) -> Vec<Applied> {
        self.0.iter().map(|e| Applied { generation: e.generation, at: e.at.clone(), cause: e.cause.clone() }).collect()
    }
    pub(super) fn before(&self, steps: u32) -> Result<&Entry, String> {
        self.0.get(steps as usize).ok_or_else(|| "no".to_owned())
    }
}
