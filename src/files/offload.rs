//! A response that names a file instead of carrying a body, made into the response with the file.

use std::{borrow::Cow, ffi::OsStr, ops::Range, os::unix::ffi::OsStrExt, path::Path, sync::Arc, time::SystemTime};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{
        ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_RANGE,
        CONTENT_TYPE, RANGE, TRANSFER_ENCODING,
    },
    response::Parts,
};

use super::{
    precondition::{self, Outcome, Validators},
    range::{self, Selection},
    roots::{FileError, OpenFile, Roots},
};
use crate::http::{Body, FileBody, GatewayError, Sequence};

/// What an application asked of the front end in a response head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    pub target: Option<Target>,
    /// `X-Accel-Buffering`: `false` asks that the response be passed on as it comes.
    pub buffering: Option<bool>,
}

/// The body an application wants sent instead of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The file at this path, as the application spelled it.
    File(Vec<u8>),
    /// An `X-Accel-Redirect` that does not begin with the route's prefix: a location of somebody's nginx.
    Location { uri: String, accel_prefix: String },
}

/// Takes `X-Sendfile` and every `X-Accel-…` header out of `headers`: none of them is for the client.
///
/// Look at [`Offload::target`] before the body: with it comes a `Content-Length` without a body. `X-Sendfile` wins
/// over `X-Accel-Redirect`; an empty value asks for nothing. `accel_prefix` has both its slashes, as in the plan.
pub fn take_offload(headers: &mut HeaderMap, accel_prefix: &str) -> Offload {
    let ours = |name: &HeaderName| *name == X_SENDFILE || name.as_str().starts_with("x-accel-");
    if !headers.keys().any(ours) {
        return Offload::default();
    }
    let value = |name: &HeaderName| headers.get(name).map(HeaderValue::as_bytes).filter(|value| !value.is_empty());
    let target = match value(&X_SENDFILE) {
        Some(path) => Some(Target::File(path.to_vec())),
        None => value(&X_ACCEL_REDIRECT).map(|uri| Target::accel(uri, accel_prefix)),
    };
    let buffering = match value(&X_ACCEL_BUFFERING) {
        Some(value) if value.eq_ignore_ascii_case(b"no") => Some(false),
        Some(value) if value.eq_ignore_ascii_case(b"yes") => Some(true),
        _ => None,
    };
    for name in headers.keys().filter(|name| ours(name)).cloned().collect::<Vec<_>>() {
        headers.remove(name);
    }
    Offload { target, buffering }
}

impl Target {
    fn accel(uri: &[u8], accel_prefix: &str) -> Self {
        // The slash after the prefix begins the path.
        let prefix = accel_prefix.strip_suffix('/').unwrap_or(accel_prefix);
        match uri.strip_prefix(prefix.as_bytes()) {
            Some(path) if path.starts_with(b"/") => Self::File(path.to_vec()),
            _ => {
                Self::Location { uri: String::from_utf8_lossy(uri).into_owned(), accel_prefix: accel_prefix.to_owned() }
            }
        }
    }
}

/// Makes the response with the file that `target` names out of the application's response head.
///
/// The application's headers stay, but for those that describe how its own body was sent. Its `ETag` and
/// `Last-Modified` are used for the conditions, ours where it has none. A 206 of the application counts as its 200: the
/// range is ours to cut. A 304 stays as it is. With any other status, and for methods other than GET and HEAD, the
/// file is sent whole and without validators. HEAD is answered as GET would be, ranges included, as Apache and nginx
/// do and programs that probe for ranges expect (RFC 9110, 14.2 defines `Range` for GET alone).
///
/// # Errors
///
/// 404 for a file that is missing or may not be served; the message names the path and what refused it.
pub async fn send(
    roots: &Roots,
    target: &Target,
    method: &Method,
    request: &HeaderMap,
    mut response: Parts,
) -> Result<Response<Body>, GatewayError> {
    for name in [CONTENT_LENGTH, CONTENT_RANGE, ACCEPT_RANGES, TRANSFER_ENCODING] {
        response.headers.remove(name);
    }
    if bodiless(response.status) {
        return Ok(Response::from_parts(response, Body::Empty));
    }
    let path = match target {
        Target::File(path) => path,
        Target::Location { uri, accel_prefix } => {
            let message = format!(
                "X-Accel-Redirect names {uri}, which does not begin with {accel_prefix} (routes[].accel_prefix): \
                 internal locations are not supported"
            );
            return Err(GatewayError::upstream(StatusCode::NOT_FOUND, message));
        }
    };
    let file = find(roots, path).await?;
    if response.status == StatusCode::PARTIAL_CONTENT {
        response.status = StatusCode::OK;
        // It described the parts, not the file.
        if media_type(&response.headers).is_some_and(|media_type| media_type.starts_with(b"multipart/byteranges")) {
            response.headers.remove(CONTENT_TYPE);
        }
    }
    response.headers.entry(CONTENT_TYPE).or_insert_with(|| guess(path));

    let answers_conditions = response.status == StatusCode::OK && matches!(*method, Method::GET | Method::HEAD);
    let selection = if answers_conditions {
        let validators = Validators::complete(&mut response.headers, &file, SystemTime::now());
        match precondition::evaluate(request, &validators) {
            Outcome::Proceed => {}
            Outcome::NotModified => return Ok(without_file(response, StatusCode::NOT_MODIFIED)),
            Outcome::Failed => return Ok(without_file(response, StatusCode::PRECONDITION_FAILED)),
        }
        response.headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        let mut ranges = request.get_all(RANGE).iter();
        match (ranges.next(), ranges.next()) {
            (Some(header), None) if precondition::range_applies(request, &validators) => {
                range::select(header.as_bytes(), file.length)
            }
            _ => Selection::Whole,
        }
    } else {
        Selection::Whole
    };
    let body = match selection {
        Selection::Whole => slice(&file, 0..file.length),
        Selection::Unsatisfiable => {
            let mut response = without_file(response, StatusCode::RANGE_NOT_SATISFIABLE);
            response.headers_mut().insert(CONTENT_RANGE, header(format!("bytes */{}", file.length)));
            return Ok(response);
        }
        Selection::Ranges(ranges) => {
            response.status = StatusCode::PARTIAL_CONTENT;
            if let [range] = &ranges[..] {
                response.headers.insert(CONTENT_RANGE, header(content_range(range, file.length)));
                slice(&file, range.clone())
            } else {
                multipart(&mut response.headers, &file, ranges)
            }
        }
    };
    let length = body.length().expect("files and text have exact lengths");
    response.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    Ok(Response::from_parts(response, if method == Method::HEAD { Body::Empty } else { body }))
}

fn bodiless(status: StatusCode) -> bool {
    status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Opens the file at `path`, or at what an application may have meant by it; see [`spellings`].
async fn find(roots: &Roots, path: &[u8]) -> Result<OpenFile, FileError> {
    let mut first = None;
    for spelling in spellings(path) {
        match roots.file(&spelling).await {
            Err(error) if error.is_absence() => first = first.or(Some(error)),
            found => return found,
        }
    }
    Err(first.expect("a path has at least the spelling it came in"))
}

/// The names `path` may stand for, most likely first: as it is (docassemble escapes nothing); percent-decoded (Django's
/// documentation escapes it for nginx); UTF-8 where it came in Latin-1, which is how WSGI carries text (PEP 3333).
fn spellings(path: &[u8]) -> impl Iterator<Item = Cow<'_, [u8]>> {
    let decoded = path.contains(&b'%').then(|| Cow::from(percent_encoding::percent_decode(path)));
    let text = std::str::from_utf8(path).is_err().then(|| {
        let text: String = path.iter().copied().map(char::from).collect();
        Cow::Owned(text.into_bytes())
    });
    [Some(Cow::Borrowed(path)), decoded, text].into_iter().flatten()
}

/// An answer that carries neither the file nor a description of it (304, 412, 416).
fn without_file(mut response: Parts, status: StatusCode) -> Response<Body> {
    response.status = status;
    for name in [CONTENT_TYPE, CONTENT_ENCODING, CONTENT_DISPOSITION, CONTENT_LANGUAGE, ACCEPT_RANGES] {
        response.headers.remove(name);
    }
    if !bodiless(status) {
        response.headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
    }
    Response::from_parts(response, Body::Empty)
}

fn slice(file: &OpenFile, range: Range<u64>) -> Body {
    if range.is_empty() {
        return Body::Empty;
    }
    Body::File(FileBody::new(Arc::clone(&file.file), range.start, range.end - range.start))
}

/// `multipart/byteranges` (RFC 9110, 14.6), its boundary new in each response.
fn multipart(headers: &mut HeaderMap, file: &OpenFile, ranges: Vec<Range<u64>>) -> Body {
    let boundary = format!("{:032x}", fastrand::u128(..));
    let multipart_type = header(format!("multipart/byteranges; boundary={boundary}"));
    let part_type = headers.insert(CONTENT_TYPE, multipart_type);
    let mut bodies = Vec::with_capacity(ranges.len() * 2 + 1);
    for range in ranges {
        let mut head = Vec::with_capacity(192);
        head.extend_from_slice(if bodies.is_empty() { b"--" } else { b"\r\n--" });
        head.extend_from_slice(boundary.as_bytes());
        if let Some(part_type) = &part_type {
            head.extend_from_slice(b"\r\nContent-Type: ");
            head.extend_from_slice(part_type.as_bytes());
        }
        head.extend_from_slice(b"\r\nContent-Range: ");
        head.extend_from_slice(content_range(&range, file.length).as_bytes());
        head.extend_from_slice(b"\r\n\r\n");
        bodies.push(Body::from(Bytes::from(head)));
        bodies.push(slice(file, range));
    }
    bodies.push(Body::from(Bytes::from(format!("\r\n--{boundary}--\r\n"))));
    Body::stream(Sequence::new(bodies))
}

fn content_range(range: &Range<u64>, length: u64) -> String {
    format!("bytes {}-{}/{length}", range.start, range.end - 1)
}

fn header(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("made of digits and ASCII letters")
}

fn media_type(headers: &HeaderMap) -> Option<Vec<u8>> {
    headers.get(CONTENT_TYPE).map(|value| value.as_bytes().to_ascii_lowercase())
}

/// The content type that the name of the file suggests.
fn guess(path: &[u8]) -> HeaderValue {
    let guess = mime_guess::from_path(Path::new(OsStr::from_bytes(path))).first_raw();
    match guess {
        Some(text) if text.starts_with("text/") => header(format!("{text}; charset=utf-8")),
        Some(other) => HeaderValue::from_static(other),
        None => HeaderValue::from_static("application/octet-stream"),
    }
}

const X_SENDFILE: HeaderName = HeaderName::from_static("x-sendfile");
const X_ACCEL_REDIRECT: HeaderName = HeaderName::from_static("x-accel-redirect");
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, time::Duration};

    use http::header::{
        CACHE_CONTROL, CONTENT_SECURITY_POLICY, ETAG, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
        LAST_MODIFIED, SET_COOKIE, STRICT_TRANSPORT_SECURITY,
    };
    use http_body_util::BodyExt as _;
    use proptest::prelude::*;

    use super::*;

    const CONTENT: &str = "0123456789";

    struct Answer {
        status: StatusCode,
        headers: HeaderMap,
        body: Bytes,
    }

    impl Answer {
        fn header(&self, name: impl http::header::AsHeaderName) -> Option<&str> {
            self.headers.get(name).map(|value| value.to_str().unwrap())
        }
    }

    /// A directory with one old file, `name`.
    fn directory_with(name: impl AsRef<Path>, content: &[u8]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        fs::File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
        directory
    }

    fn head(status: u16, fields: &[(HeaderName, &str)]) -> Parts {
        let mut head = Response::builder().status(status).body(()).unwrap().into_parts().0;
        head.headers = map(fields);
        head
    }

    fn map(fields: &[(HeaderName, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.clone(), HeaderValue::try_from(*value).unwrap())).collect()
    }

    fn answer(
        directory: &Path,
        name: &[u8],
        method: &Method,
        request: &HeaderMap,
        head: Parts,
    ) -> Result<Answer, GatewayError> {
        let (roots, _) = Roots::open(&[directory.to_owned()], &Arc::default()).unwrap();
        let target = Target::File([directory.as_os_str().as_bytes(), b"/", name].concat());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (parts, body) = send(&roots, &target, method, request, head).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Answer { status: parts.status, headers: parts.headers, body })
        })
    }

    fn get(fields: &[(HeaderName, &str)], head: Parts) -> Answer {
        let directory = directory_with("file.txt", CONTENT.as_bytes());
        answer(directory.path(), b"file.txt", &Method::GET, &map(fields), head).unwrap()
    }

    /// The application's headers, and what they ask for.
    type Row = (&'static [(&'static str, &'static str)], Option<Target>, Option<bool>);

    #[test]
    fn control_headers_are_taken_out_and_understood() {
        let target = |path: &str| Some(Target::File(path.into()));
        let elsewhere = |uri: &str| Some(Target::Location { uri: uri.into(), accel_prefix: "/xaccel/".into() });
        #[rustfmt::skip]
        let table: &[Row] = &[
            (&[], None, None),
            (&[("x-sendfile", "/usr/a b%41?c")], target("/usr/a b%41?c"), None),
            (&[("x-sendfile", "")], None, None),
            (&[("x-accel-redirect", "/xaccel/usr/a?b")], target("/usr/a?b"), None),
            (&[("x-accel-redirect", "/xaccel//usr/a")], target("//usr/a"), None),
            (&[("x-accel-redirect", "/xaccelerated/a")], elsewhere("/xaccelerated/a"), None),
            (&[("x-accel-redirect", "@fallback")], elsewhere("@fallback"), None),
            (&[("x-sendfile", "/a"), ("x-accel-redirect", "/xaccel/b")], target("/a"), None),
            (&[("x-accel-buffering", "no")], None, Some(false)),
            (&[("x-accel-buffering", "YES")], None, Some(true)),
            (&[("x-accel-buffering", "maybe"), ("x-accel-expires", "0"), ("x-accel-limit-rate", "1"), ("x-accel-charset", "utf-8")], None, None),
        ];

        for (fields, target, buffering) in table {
            let mut headers = map(&[(CACHE_CONTROL, "no-store")]);
            for (name, value) in *fields {
                headers.append(*name, HeaderValue::from_str(value).unwrap());
                headers.append(*name, HeaderValue::from_static("again"));
            }

            let offload = take_offload(&mut headers, "/xaccel/");

            assert_eq!((&offload.target, &offload.buffering), (target, buffering), "{fields:?}");
            assert_eq!(headers, map(&[(CACHE_CONTROL, "no-store")]), "{fields:?}");
        }
    }

    #[test]
    fn the_headers_of_the_application_stay_and_the_framing_is_ours() {
        let kept = [
            (CONTENT_SECURITY_POLICY, "default-src 'self'"),
            (STRICT_TRANSPORT_SECURITY, "max-age=1"),
            (CONTENT_DISPOSITION, "attachment; filename=x"),
            (SET_COOKIE, "a=b"),
            (CACHE_CONTROL, "private"),
            (CONTENT_TYPE, "application/x-theirs"),
            (CONTENT_ENCODING, "gzip"),
        ];
        let mut theirs = kept.to_vec();
        theirs.extend([(CONTENT_LENGTH, "3"), (ACCEPT_RANGES, "none"), (TRANSFER_ENCODING, "chunked")]);

        let answer = get(&[], head(200, &theirs));

        assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, CONTENT.as_bytes()));
        for (name, value) in kept {
            assert_eq!(answer.header(&name), Some(value), "{name}");
        }
        assert_eq!(answer.header(CONTENT_LENGTH), Some("10"));
        assert_eq!(answer.header(ACCEPT_RANGES), Some("bytes"));
        assert_eq!(answer.header(TRANSFER_ENCODING), None);
        assert_eq!(answer.header(LAST_MODIFIED), Some("Tue, 14 Nov 2023 22:13:20 GMT"));
        assert!(answer.header(ETAG).unwrap().starts_with('"'));
    }

    #[test]
    fn names_with_any_character_are_found_as_they_are_or_decoded() {
        let table: &[(&[u8], &[u8])] = &[
            (b"a b", b"a b"),
            (b"a b", b"a%20b"),
            (b"%41", b"%41"),
            (b"%41", b"%2541"),
            (b"A", b"%41"),
            (b"a?b=c#d", b"a?b=c#d"),
            ("é☃".as_bytes(), "é☃".as_bytes()),
            ("é☃".as_bytes(), b"%C3%A9%E2%98%83"),
            ("é".as_bytes(), b"\xe9"),
            (b"\xe9", b"\xe9"),
            (b"100%", b"100%"),
            (b"a:b;c,d", b"a:b;c,d"),
        ];

        for (name, path) in table {
            let directory = directory_with(OsStr::from_bytes(name), b"found");
            let answer = answer(directory.path(), path, &Method::GET, &HeaderMap::new(), head(200, &[]));
            assert_eq!(answer.unwrap().body, "found", "{}", path.escape_ascii());
        }
    }

    #[test]
    fn an_escaped_path_is_held_to_the_roots_like_any_other() {
        let house = tempfile::tempdir().unwrap();
        fs::create_dir(house.path().join("allowed")).unwrap();
        fs::write(house.path().join("secret"), "SECRET").unwrap();

        for path in ["%2e%2e/secret", "..%2fsecret", "%2E./secret", "%00", "../secret"] {
            let allowed = house.path().join("allowed");
            let Err(error) = answer(&allowed, path.as_bytes(), &Method::GET, &HeaderMap::new(), head(200, &[])) else {
                panic!("{path} was served");
            };
            assert_eq!(error.status, StatusCode::NOT_FOUND);
        }
    }

    #[tokio::test]
    async fn a_location_that_is_no_file_is_a_404_that_names_the_prefix() {
        let (roots, _) = Roots::open(&["/usr".into()], &Arc::default()).unwrap();
        let mut headers = map(&[(HeaderName::from_static("x-accel-redirect"), "/protected/file")]);
        let target = take_offload(&mut headers, "/xaccel/").target.unwrap();

        let Err(error) = send(&roots, &target, &Method::GET, &HeaderMap::new(), head(200, &[])).await else {
            panic!("it was served");
        };

        assert_eq!(error.status, StatusCode::NOT_FOUND);
        assert!(error.to_string().contains("/protected/file") && error.to_string().contains("/xaccel/"), "{error}");
    }

    #[test]
    fn a_single_range_is_cut_also_where_the_application_has_cut_it_already() {
        let theirs = head(206, &[(CONTENT_RANGE, "bytes 2-4/10"), (CONTENT_LENGTH, "3"), (CONTENT_TYPE, "a/b")]);

        for head in [theirs, head(200, &[(CONTENT_TYPE, "a/b")])] {
            let answer = get(&[(RANGE, "bytes=2-4")], head);

            assert_eq!((answer.status, &answer.body[..]), (StatusCode::PARTIAL_CONTENT, &b"234"[..]));
            assert_eq!(answer.header(CONTENT_RANGE), Some("bytes 2-4/10"));
            assert_eq!(answer.header(CONTENT_LENGTH), Some("3"));
            assert_eq!(answer.header(CONTENT_TYPE), Some("a/b"));
        }
    }

    #[test]
    fn several_ranges_are_sent_as_parts_with_the_length_told() {
        let answer = get(&[(RANGE, "bytes=0-1,-2")], head(200, &[(CONTENT_TYPE, "a/b")]));

        let boundary = answer.header(CONTENT_TYPE).unwrap().strip_prefix("multipart/byteranges; boundary=").unwrap();
        let expected = format!(
            "--{boundary}\r\nContent-Type: a/b\r\nContent-Range: bytes 0-1/10\r\n\r\n01\r\n\
             --{boundary}\r\nContent-Type: a/b\r\nContent-Range: bytes 8-9/10\r\n\r\n89\r\n--{boundary}--\r\n"
        );
        assert_eq!(answer.status, StatusCode::PARTIAL_CONTENT);
        assert_eq!(answer.body, expected);
        assert_eq!(answer.header(CONTENT_LENGTH), Some(expected.len().to_string().as_str()));
        assert_eq!(answer.header(CONTENT_RANGE), None);
    }

    #[test]
    fn a_range_beyond_the_file_is_a_416_with_its_length() {
        let answer = get(&[(RANGE, "bytes=10-")], head(200, &[(CONTENT_SECURITY_POLICY, "x")]));

        assert_eq!((answer.status, answer.body.len()), (StatusCode::RANGE_NOT_SATISFIABLE, 0));
        assert_eq!(answer.header(CONTENT_RANGE), Some("bytes */10"));
        assert_eq!(answer.header(CONTENT_LENGTH), Some("0"));
        assert_eq!(answer.header(CONTENT_TYPE), None);
        assert_eq!(answer.header(CONTENT_SECURITY_POLICY), Some("x"));
    }

    #[test]
    fn conditions_are_held_against_the_validators_that_are_sent() {
        let first = get(&[], head(200, &[]));
        let (date, theirs) = (first.header(LAST_MODIFIED).unwrap(), [(ETAG, r#""theirs""#)]);
        let table: &[(&[(HeaderName, &str)], u16)] = &[
            (&[(IF_MODIFIED_SINCE, date)], 304),
            (&[(IF_NONE_MATCH, r#"W/"theirs""#)], 304),
            (&[(IF_NONE_MATCH, r#""other""#)], 200),
            (&[(IF_MATCH, r#""other""#)], 412),
            (&[(RANGE, "bytes=0-0"), (IF_RANGE, r#""theirs""#)], 206),
            (&[(RANGE, "bytes=0-0"), (IF_RANGE, r#""other""#)], 200),
            (&[(RANGE, "bytes=0-0"), (IF_RANGE, date)], 206),
            (&[(RANGE, "bytes=99-"), (IF_RANGE, r#""other""#)], 200),
            (&[(RANGE, "bytes=0-0"), (RANGE, "bytes=1-1")], 200),
        ];

        for (fields, status) in table {
            let mut request = HeaderMap::new();
            for (name, value) in *fields {
                request.append(name, HeaderValue::from_str(value).unwrap());
            }
            let directory = directory_with("file", CONTENT.as_bytes());
            let answer = answer(directory.path(), b"file", &Method::GET, &request, head(200, &theirs)).unwrap();
            assert_eq!(answer.status, *status, "{fields:?}");
            assert_eq!(answer.header(ETAG), Some(r#""theirs""#));
            assert_eq!(answer.body.is_empty(), matches!(status, 304 | 412), "{fields:?}");
        }
    }

    #[test]
    fn a_304_of_the_application_passes_without_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let head = head(304, &[(ETAG, r#""theirs""#), (CONTENT_LENGTH, "10")]);

        let answer = answer(directory.path(), b"gone", &Method::GET, &HeaderMap::new(), head).unwrap();

        assert_eq!((answer.status, answer.header(ETAG)), (StatusCode::NOT_MODIFIED, Some(r#""theirs""#)));
        assert_eq!(answer.header(CONTENT_LENGTH), None);
    }

    #[test]
    fn an_error_page_in_a_file_keeps_its_status_and_is_sent_whole() {
        let answer = get(&[(RANGE, "bytes=0-0"), (IF_NONE_MATCH, "*")], head(404, &[]));

        assert_eq!((answer.status, &answer.body[..]), (StatusCode::NOT_FOUND, CONTENT.as_bytes()));
        assert_eq!(answer.header(ACCEPT_RANGES), None);
        assert_eq!(answer.header(ETAG), None);
    }

    #[test]
    fn a_post_is_answered_with_the_whole_file_whatever_its_conditions() {
        let directory = directory_with("file", CONTENT.as_bytes());
        let request = map(&[(RANGE, "bytes=0-0"), (IF_NONE_MATCH, "*")]);

        let answer = answer(directory.path(), b"file", &Method::POST, &request, head(200, &[])).unwrap();

        assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, CONTENT.as_bytes()));
    }

    #[test]
    fn head_has_the_headers_of_get_and_no_body() {
        for request in [HeaderMap::new(), map(&[(RANGE, "bytes=1-3")]), map(&[(RANGE, "bytes=99-")])] {
            let directory = directory_with("file.txt", CONTENT.as_bytes());
            let ask = |method| answer(directory.path(), b"file.txt", &method, &request, head(200, &[])).unwrap();
            let (get, head) = (ask(Method::GET), ask(Method::HEAD));

            assert_eq!((get.status, get.headers), (head.status, head.headers));
            assert!(head.body.is_empty());
        }
    }

    #[test]
    fn an_empty_file_is_sent_and_has_no_ranges() {
        let directory = directory_with("file", b"");
        for (range, status) in [("bytes=0-", 416), ("bytes=-1", 200), ("bytes=x", 200)] {
            let request = map(&[(RANGE, range)]);
            let answer = answer(directory.path(), b"file", &Method::GET, &request, head(200, &[])).unwrap();
            assert_eq!(answer.status, status, "{range}");
            assert_eq!(answer.header(CONTENT_LENGTH), Some("0"));
        }
    }

    #[test]
    fn the_end_of_a_file_of_five_gibibytes_is_sent() {
        let directory = directory_with("file", b"");
        fs::File::options().write(true).open(directory.path().join("file")).unwrap().set_len(5 << 30).unwrap();
        let request = map(&[(RANGE, "bytes=5368709117-")]);

        let answer = answer(directory.path(), b"file", &Method::GET, &request, head(200, &[])).unwrap();

        assert_eq!(answer.header(CONTENT_RANGE), Some("bytes 5368709117-5368709119/5368709120"));
        assert_eq!(answer.body, &[0; 3][..]);
    }

    #[test]
    fn the_type_is_guessed_from_the_name_the_application_used() {
        let directory = directory_with("file", CONTENT.as_bytes());
        let table = [
            ("page.html", "text/html; charset=utf-8"),
            ("picture.png", "image/png"),
            ("file.unheard-of", "application/octet-stream"),
            ("none", "application/octet-stream"),
        ];

        for (name, expected) in table {
            symlink("file", directory.path().join(name)).unwrap();
            let answer = answer(directory.path(), name.as_bytes(), &Method::GET, &HeaderMap::new(), head(200, &[]));
            assert_eq!(answer.unwrap().header(CONTENT_TYPE), Some(expected));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn what_a_range_brings_is_the_slice_it_names(
            content in proptest::collection::vec(any::<u8>(), 0..200),
            range in prop_oneof!["bytes=[0-9]{0,3}-[0-9]{0,3}(,[0-9]{0,3}-[0-9]{0,3}){0,3}", "[ -~]{0,30}"],
        ) {
            let directory = directory_with("file", &content);
            let request = map(&[(RANGE, range.as_str())]);
            let answer = answer(directory.path(), b"file", &Method::GET, &request, head(200, &[])).unwrap();
            prop_assert_eq!(&answer.headers[CONTENT_LENGTH], &answer.body.len().to_string());
            match (answer.status.as_u16(), answer.header(CONTENT_RANGE)) {
                (200, None) => prop_assert_eq!(&answer.body, &content),
                (206, Some(sent)) => prop_assert_eq!(&answer.body[..], slice_named(sent, &content)),
                (206, None) => {
                    let kind = answer.header(CONTENT_TYPE).unwrap();
                    let delimiter = format!("--{}", kind.strip_prefix("multipart/byteranges; boundary=").unwrap());
                    let mut rest = &answer.body[..];
                    while let Some(after) = rest.strip_prefix(format!("{delimiter}\r\n").as_bytes()) {
                        let end = after.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
                        let part_head = std::str::from_utf8(&after[..end]).unwrap();
                        let expected = slice_named(part_head.split_once("Content-Range: ").unwrap().1, &content);
                        let body = &after[end + 4..];
                        prop_assert_eq!(&body[..expected.len()], expected);
                        rest = body[expected.len()..].strip_prefix(b"\r\n").unwrap();
                    }
                    let close = format!("{delimiter}--\r\n");
                    prop_assert_eq!(rest, close.as_bytes());
                }
                (416, Some(sent)) => prop_assert_eq!(sent, format!("bytes */{}", content.len())),
                other => prop_assert!(false, "{:?}", other),
            }
        }

        #[test]
        fn no_bytes_of_a_control_header_panic(value in proptest::collection::vec(any::<u8>(), 0..40), which in 0_usize..3) {
            let Ok(value) = HeaderValue::from_bytes(&value) else { return Ok(()) };
            let name = [X_SENDFILE, X_ACCEL_REDIRECT, X_ACCEL_BUFFERING][which].clone();
            let mut headers = HeaderMap::from_iter([(name, value)]);
            let offload = take_offload(&mut headers, "/xaccel/");
            prop_assert!(headers.is_empty());
            if let Some(target) = offload.target {
                let (roots, _) = Roots::open(&["/usr".into()], &Arc::default()).unwrap();
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                drop(runtime.block_on(send(&roots, &target, &Method::GET, &HeaderMap::new(), head(200, &[]))));
            }
        }
    }

    /// The slice of `content` that `bytes first-last/length` names.
    fn slice_named<'a>(content_range: &str, content: &'a [u8]) -> &'a [u8] {
        let (range, length) = content_range.strip_prefix("bytes ").unwrap().split_once('/').unwrap();
        assert_eq!(length, content.len().to_string());
        let (first, last) = range.split_once('-').unwrap();
        &content[first.parse().unwrap()..=last.parse().unwrap()]
    }
}
