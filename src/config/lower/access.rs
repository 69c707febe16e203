//! Who may use a route.

use super::trust;
use crate::config::{
    plan::AccessPlan,
    raw,
    read::{Reading, Told},
};

pub(super) fn lower_access(route: &raw::Route, at: &str, reading: &mut Reading<'_>) -> Result<AccessPlan, Told> {
    if matches!(&route.allow, Ok(Some(allow)) if allow.is_empty()) {
        let problem = "nobody could come; name who may, or write `null` for everybody";
        return Err(reading.refuse_at(&format!("{at}.allow"), problem));
    }
    Ok(AccessPlan { allow: route.allow.clone()?.map(trust), deny: trust(route.deny.clone()?) })
}
