//! Who may use a route, and what browsers are told to be careful about.

use std::collections::BTreeSet;

use super::trust;
use crate::config::{
    plan::{AccessPlan, BasicAuthPlan, ForwardAuthPlan, FrameAncestor, HstsPlan, SecurityHeadersPlan},
    raw,
    read::{OneOrMore, Reading, Told, suggestion},
};

pub(super) fn lower_access(
    route: &raw::Route,
    upstreams: &Result<BTreeSet<String>, Told>,
    at: &str,
    reading: &mut Reading<'_>,
) -> Result<AccessPlan, Told> {
    let allow = match &route.allow {
        Ok(Some(allow)) if allow.is_empty() => {
            let problem = "nobody could come; name who may, or write `null` for everybody";
            Err(reading.refuse_at(&format!("{at}.allow"), problem))
        }
        allow => allow.clone(),
    };
    let basic_auth = lower_basic_auth(route);
    let forward_auth = lower_forward_auth(route, upstreams, at, reading);
    Ok(AccessPlan {
        allow: allow?.map(trust),
        deny: trust(route.deny.clone()?),
        basic_auth: basic_auth?,
        forward_auth: forward_auth?,
    })
}

fn lower_basic_auth(route: &raw::Route) -> Result<Option<BasicAuthPlan>, Told> {
    let Some(basic) = route.basic_auth.as_ref().map_err(|told| *told)? else { return Ok(None) };
    Ok(Some(BasicAuthPlan { file: basic.file.clone()?.0, realm: basic.realm.clone()?.0, pass: basic.pass? }))
}

fn lower_forward_auth(
    route: &raw::Route,
    upstreams: &Result<BTreeSet<String>, Told>,
    at: &str,
    reading: &mut Reading<'_>,
) -> Result<Option<ForwardAuthPlan>, Told> {
    let Some(forward) = route.forward_auth.as_ref().map_err(|told| *told)? else { return Ok(None) };
    if let (Ok(name), Ok(upstreams)) = (&forward.upstream, upstreams)
        && !upstreams.contains(name)
    {
        let near = suggestion(name, upstreams.iter().map(String::as_str));
        return Err(
            reading.refuse_at(&format!("{at}.forward_auth.upstream"), format!("no upstream is named `{name}`{near}"))
        );
    }
    Ok(Some(ForwardAuthPlan {
        upstream: forward.upstream.clone()?,
        path: forward.path.clone()?.0,
        response_headers: forward.response_headers.clone()?.into_iter().map(|name| name.0).collect(),
        timeout: forward.timeout?.0,
    }))
}

pub(super) fn lower_allow_origin(route: &raw::Route, at: &str, reading: &mut Reading<'_>) -> Result<Vec<String>, Told> {
    let Some(OneOrMore(origins)) = route.allow_origin.clone()? else { return Ok(Vec::new()) };
    if origins.is_empty() || origins.len() > 1 && origins.iter().any(|origin| origin.0 == "*") {
        let problem = "`*` stands alone, and something has to stand there; write `null` to say nothing of it";
        return Err(reading.refuse_at(&format!("{at}.allow_origin"), problem));
    }
    Ok(origins.into_iter().map(|origin| origin.0).collect())
}

pub(super) fn lower_security_headers(
    route: &raw::Route,
    at: &str,
    reading: &mut Reading<'_>,
) -> Result<SecurityHeadersPlan, Told> {
    let hsts = lower_hsts(route, at, reading);
    let Some(headers) = route.security_headers.as_ref().map_err(|told| *told)? else {
        return Ok(SecurityHeadersPlan { hsts: hsts?, ..SecurityHeadersPlan::default() });
    };
    let frames = headers.frames.clone()?.map(|OneOrMore(frames)| frames);
    if let Some(frames) = &frames
        && (frames.is_empty() || frames.len() > 1 && frames.contains(&FrameAncestor::None))
    {
        let problem = "`none` stands alone, and something has to stand there; write `null` to say nothing of it";
        return Err(reading.refuse_at(&format!("{at}.security_headers.frames"), problem));
    }
    Ok(SecurityHeadersPlan {
        hsts: hsts?,
        nosniff: headers.nosniff?,
        referrer_policy: headers.referrer_policy.clone()?.map(|policy| policy.0),
        frames,
    })
}

fn lower_hsts(route: &raw::Route, at: &str, reading: &mut Reading<'_>) -> Result<Option<HstsPlan>, Told> {
    let Some(hsts) = route.hsts.as_ref().map_err(|told| *told)? else { return Ok(None) };
    let plan = HstsPlan { max_age: hsts.max_age?.0, subdomains: hsts.subdomains?, preload: hsts.preload? };
    // What the list takes (hstspreload.org).
    if plan.preload && !(plan.subdomains && plan.max_age.as_secs() >= 365 * 24 * 3600) {
        let problem = "browsers build it in only with `subdomains: true` and a `max_age` of `365d`";
        return Err(reading.refuse_at(&format!("{at}.hsts.preload"), problem));
    }
    Ok(Some(plan))
}
