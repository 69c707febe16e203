//! Vestibule: the front door for self-hosted Python web applications.
//!
//! It stands between the internet and a WSGI application: it ends TLS, reads each request by one strict rule, waits with
//! it for a place in the application, hands it over whole, and sends the answer, or the file the application names, at the
//! client's own speed. Nothing that is done to it on purpose drops a request. This page is the map; each module says what
//! it is for and what it leaves to others.
//!
//! # The house
//!
//! A module uses only what stands above it, but that `tls::storage` keeps its folder by the rules of `keeper::folder`.
//!
//! | module | what it is |
//! |---|---|
//! | [`config`] | the only door for settings: text → tree → raw values → [`config::Plan`], or every fault at once; docassemble's own configuration is another way to the tree |
//! | [`splice`] | bytes that pass from a socket or a file to a socket within the kernel |
//! | [`http`] | the vocabulary of one exchange: bodies, errors, paths, hosts, header rules, pages, compression |
//! | [`h1`] | HTTP/1.1 on the wire, bytes in and bytes out, for both sides |
//! | `allocator` | memory that was freed goes back to the system |
//! | [`metrics`], [`telemetry`], [`drain`] | counts; the access log and events; what a stop waits for |
//! | [`limits`] | how many may come in, and how often: connections, handshakes and requests by client and in all, memory |
//! | `turns` | whose turn it is on a traffic thread |
//! | [`spool`], `disk` | disk for bodies that do not fit in memory; work that may have to wait for a disk |
//! | [`files`] | `X-Sendfile` and `X-Accel-Redirect`: a file under an allowed root becomes a response |
//! | [`backends`] | processes behind endpoints: ours, none of which outlives us, and those that supervisord knows |
//! | [`upstream`] | an application: endpoints, whether it is ready, its workers, the queue before it, the connections to it |
//! | [`access`] | users and their passwords, looked at within bounds |
//! | [`route`], [`runtime`] | host and path → route; one immutable generation of all that a request needs |
//! | [`tls`] | certificates by name, the terms of handshakes, records without a buffer for who is idle; those that are ordered (`tls::acme`), and where they are kept |
//! | [`proxy`] | one exchange with an endpoint, over HTTP or uwsgi, and the tunnel of a websocket |
//! | [`service`] | **the path of a request**: `serve`, every step in order |
//! | [`listener`] | bound sockets, handshakes, the connection before and between requests |
//! | [`admin`] | live, ready, status, metrics and orders on a socket of its own, and over TCP for whoever has the token |
//! | [`keeper`] | what is privileged, step by step: binds, reads keys, opens logs and folders, hands all of it over |
//! | [`gateway`] | the traffic as a table of contents: what is started in which order, another plan, the end |
//! | [`process`] | **the processes**: the one that is the keeper, its loop, its workers; reload, crash, drain, upgrade |
//! | [`demo`], [`cli`] | a front door to look at; the command line |
//! | `shim` | what stands where scripts look for `nginx` |
//! | `properties` | in tests and for the fuzzer: what holds of any bytes that come from outside |
//!
//! # The path of a request
//!
//! A connection is accepted into a task of its own, where a PROXY header is read if the listener requires one and TLS
//! is agreed under a deadline ([`listener`]). On a listener with a log server there is only that. Its requests are read by [`h1`], or by hyper for HTTP/2, and each goes
//! through [`service::serve`], which is the law and reads from top to bottom: the log record, the listener's redirect,
//! one reading of host, path and client, how often the client has asked, the host rule, the route, who may use it (by
//! address, certificate and password), whether its application is ready at all (if not, a page that says what is
//! missing), another server's word, the body's announced length,
//! the body collected, a place waited for, the exchange, and the answer with its `Location`, its file and its
//! compression. A websocket's handshake takes that path as any request and leaves it with its 101, as a tunnel. Whatever
//! happens, one line is logged, when the last byte has gone or the client has.
//!
//! An error is one type, [`http::GatewayError`]: its status, whose doing it is and whether the request may be sent again.
//! It becomes a page, and an event if an operator can act on it, in one place.
//!
//! # Threads
//!
//! Traffic runs on one thread a core (`workers` in the configuration, [`service::TrafficThread`] in the code; all of them are in
//! one process), each with a runtime, a `SO_REUSEPORT` socket of every listener and a pool of connections of its own:
//! nothing on the path of a request crosses threads. On a thread, clients take turns (`turns`): whoever has little to do does not wait behind all that another
//! has. What is shared is shared on purpose: the queue and the counts of an
//! [`upstream::Upstream`], whether it is ready, the chain of proxies seen last, the collecting of logs, the spool's space,
//! the counts of [`limits`], the passwords being checked ([`access`]), metrics. A configuration is read through one pointer ([`runtime::Current`]), once a request.
//! One more runtime does what is not traffic (admin, places given on, looks at whether applications are ready and how many
//! workers they have, names that are resolved again), one more
//! thread writes the access log, and the first one listens to the keeper.
//!
//! # Processes
//!
//! The *keeper* is the process that a service manager knows: it holds the listening sockets, reads the configuration, keys
//! and logs' folders, and reads nothing from the network. A *worker* is the process that carries the traffic, on all its
//! threads; there is one, and beside it those before it that still end what they began. The gateway in it is given
//! sockets, secrets and open files and fetches none of them ([`keeper::Provisions`]); to the keeper a worker says words of
//! sixteen bytes, in which it can name no path and no command. Before its first thread it shuts itself in
//! (`process::sandbox`): an ordinary user without capabilities, whose memory nobody else reads; of the disk the spool,
//! `files`, the time zone and, where an endpoint is a name, what resolving takes; of the system calls those of traffic. A
//! call of an intruder ends it.
//!
//! Where certificates are ordered there is an *agent*, too: the process that speaks with certificate authorities and has the
//! storage, and nothing else; it carries no traffic, and its sandbox has a door to the storage and none to `files`. What it
//! takes from others it asks the keeper for: challenges, which the workers answer (before any redirect, or within the
//! handshake), and commands that make DNS records. A certificate that has come goes from the agent to the keeper, and from there to the
//! workers. It may end at any moment; what it needs to go on is in the storage.
//!
//! docassemble's `config.yml` can be written by the application, so root does not obey it: a process of ours without
//! privilege reads it and answers with typed settings, in which no path is followed that is not in folders compiled in
//! (`config::docassemble`).
//!
//! Programs of `backends` are the keeper's children, too, each behind a *guard* ([`backends`]): a process of ours that begins the
//! program as its user, and ends all that it has begun when the keeper says so or has gone. An instance gets requests when a
//! worker has found that it answers; the keeper connects nowhere.
//!
//! # The path of a reload
//!
//! A change of a file ([`process`] watches folders), SIGHUP or `POST /reload` → the text, read once → [`config::Plan`], or
//! every fault, which stays in `/status` until it is mended → everything opened beside what runs
//! ([`keeper::Provisions::gather_beside`]) → [`gateway::Gateway::apply`] in the worker: threads take new sockets, certificates
//! and [`runtime::Runtime`] are swapped, listeners change their terms → what is gone is retired. An upstream keeps the
//! endpoints, idle connections and queue that are the same ([`upstream::Upstream::succeeding`]); what has begun keeps the
//! generation it began with, to its last byte. What is in the way of that (the number of threads, the user, a folder or a
//! name that the sandbox has no door to) takes a new worker, while the one before ends what it began. It all happened, or
//! nothing did.
//!
//! # Nothing is lost
//!
//! - A socket is made once. A worker that is killed loses what was inside it; what waits in the sockets is the next one's.
//! - An upgrade is `execve` of the keeper with every descriptor handed on: same pid, same sockets, same workers. A program
//!   that does not serve hands everything back to the one before.
//! - A worker that leaves answers each connection's next request with `Connection: close`, h2 with GOAWAY, and keeps its
//!   websockets to their end. The bound of an upstream stays one bound: places are passed on as they become free.
//! - A stop closes the door, ends websockets with 1001 and requests by `drain`; the exit status says whether anything was cut.
//!
//! # Bounds
//!
//! Every buffer has one, so that memory is bounded by the number of connections (`limits.connections`):
//!
//! | what | bytes | set by |
//! |---|---|---|
//! | a request head | 32 KiB | `limits.header_bytes` |
//! | requests sent ahead on one connection | 64 KiB | fixed |
//! | a request or response body in memory, the rest on disk | 256 KiB each, a request's twice while it is sent; from half of `limits.memory` on less, down to one piece of 16 to 128 KiB | `spool.memory` |
//! | a request whose client has gone, in an application with few places | its place and its connection, until an answer begins or for `timeout` | `timeout` |
//! | bodies on disk, in all | 1 GiB | `spool.limit` |
//! | a response head | 64 KiB | fixed |
//! | a read of a long body, either side | 128 KiB | fixed |
//! | buffers for files that are read, which a thread keeps | 4 of 128 KiB | fixed |
//! | of a long body that passes between plain sockets: pipes of a thread, bytes in each | 64, 1 MiB in the kernel | fixed |
//! | a compressor | 2 MiB | fixed |
//! | an idle tunnel | none beyond its sockets and the line that is logged of it | |
//! | what workers have said and the keeper has not heard | 64 words, and what a socket holds | fixed |
//! | a command of the operator's: what is logged of each output, how long it may take | 64 KiB in lines of 1000 characters; 5 min for DNS records | fixed; `tls.deploy` |
//! | what is logged of a program of `backends` | 1000 lines of 1000 bytes and 256 KiB a second, of each instance; it waits then | fixed |
//! | a program of `backends`: until it is ready, until it has ended, between two that fail | 60 s, 10 s, 60 s | `ready.timeout`, `stop.timeout`; fixed |
//! | instances of a program of `backends` | 64, and one more while one is replaced; with those that end, twice as many and one | `instances` |
//! | of these, replaced ones that stay for their sessions, and for how long | as many again, 24 h | `instances`, `drain_sessions`; fixed |
//! | an archive that certificates are imported from, unpacked | 16 MiB, 64 KiB a file | fixed |
//! | configurations that are remembered | 20 of 1 MiB at most | fixed |
//! | docassemble's configuration: what is read, what its reader may say, how long | 1 MiB, 1 MiB, 10 s (50 s where docassemble fetches) | fixed |
//! | a request that waits for a place, beside its connection | 256 bytes in the queue, of `queue.limit` | fixed |
//! | what uWSGI says of its workers, and how long it may take | 1 MiB, 2 s | fixed |
//! | an answer of supervisord, and how long it may take | 1 MiB, 5 s (180 s for a restart) | fixed |
//! | a restart of a program by order: how long requests inside are waited for, and others wait in front of it | a third of `hold`; `hold`, and again until it is back | `hold` |
//! | restarts of programs that hang: at once, of one program in an hour | 1, 3 | fixed, `supervisor.restart` |
//! | instances of a program of `backends` that are replaced because they hang, restarts of one by order, in an hour | 6 for each of `instances`, 60 | fixed |
//! | processes of programs that are watched; looks at them | 64; one in 4 s | fixed |
//! | a look at whether an application is ready | 64 KiB, 5 s | fixed |
//! | endpoints that one name leads to, and how long name servers are waited for | 64, 10 s; 2 s before a configuration is put in force | fixed |
//! | a look at the health page of an endpoint; such looks at once | 64 KiB, 5 s; 64 | fixed, `health.timeout`; fixed |
//! | an object of the storage, and how long it may take to read or write it | 1 MiB, 30 s | fixed |
//! | questions for challenges that wait for word of other machines, and how long | 256, 4 s | fixed |
//! | an index of logs, and how long collecting them is waited for | 10 000 names, 30 s | fixed |
//! | an answer of a certificate authority, and how long it may take | 1 MiB, 30 s | fixed |
//! | a look at what is in the way of a certificate: answers of others, addresses of a name, in all | 4 KiB, 8, 60 s | fixed |
//! | certificates that are ordered at once | 4 | fixed |
//! | a line of the error log; what is kept of a chain of proxies | 4000 characters; 500 of two requests | fixed |
//! | all of a worker, before new clients are turned away | half of what there is | `limits.memory` |
//! | connections of one client, of all | 1000, 10 000 | `limits.connections_per_address`, `limits.connections` |
//! | streams of one client, on all its connections | 1000 | `limits.streams_per_address` |
//! | counts by client: of connections, of streams, of each rate | 256 KiB, 256 KiB, 512 KiB, for any number of clients | fixed |
//! | of an h2 connection: a header list, its fields; the tables they are compressed by | twice a request head, with 32 bytes each; 4 KiB each | `limits.header_bytes`; fixed |
//! | of an h2 connection: frames that ask for nothing | 500 resets, and 50 more a second | fixed |
//! | passwords that are looked at: at once, each; waiting, of these from one client | half of `workers`, 4 at most, 128 MiB; 64, 8 | fixed; `basic_auth.file` |
//! | idle connections that a thread keeps to one endpoint, and for how long | 512, 30 s | fixed |
//! | lines of the access log that wait to be written, of each thread | twice 256 KiB | fixed |
//! | connections to the admin socket, and over TCP, there of one client; a head there | 64, 64, 16; 16 KiB | fixed |
//! | wrong tokens of one client over TCP: at once, then one in | 10, 6 s; 512 KiB for any number of clients | fixed |
//! | passwords that are known to be right, and for how long | 1024 of 48 bytes, 5 min | fixed |
//! | of an h2 connection: streams, each with bodies as above | 100 | `limits.streams` |
//! | of an h2 connection: what is received ahead, what is held ready to send | 1 MiB, 64 KiB a stream | fixed |
//!
//! # Where this differs from what one would expect
//!
//! - HTTP/1.1 is our own ([`h1`], [`listener`]) on httparse, and not hyper's, which resolves `Transfer-Encoding` beside
//!   `Content-Length` in silence where it has to be refused, answers malformed heads by itself where the client is owed a page
//!   and the operator a line, and keeps the socket from a tunnel and from `sendfile`. HTTP/2 is hyper's.
//! - Both wires to an application share one reader, since uWSGI answers its own protocol with an HTTP response.
//! - A path with a dot segment, plain or encoded, has no route ([`http::path`] says why).
//! - A websocket's handshake waits for a place in the upstream as any request, since it would otherwise be a way past the
//!   queue, and gives it back with its 101.
//! - The JSON schema is made from the declarations the configuration is read by ([`config::schema`]), not from a twin of
//!   every type.
//! - Certificates are ordered by a process of their own and not by the worker: who takes a worker over has neither the
//!   account nor what is stored, and an authority that answers oddly speaks with a process that carries nothing.
//! - A start without root has a keeper and a worker, too: without a privilege to separate there is still a crash to survive
//!   and an upgrade to make. `--single` is one process, and says what that costs.
//! - More threads (`workers`) do not get more sockets before the next start: a socket that is bound takes its share of the
//!   connections at once, and would lose it if the change were refused. Threads share sockets instead.
//! - `vestibule reload --dry-run` compares the file that is named with what is in force, from the outside: the file that is
//!   watched would be in force before anybody could ask.
//! - Nobody keeps a table of socket.io's sessions. A `sid` is made up by the server, in the body of an answer, so no hash of it
//!   leads back to that server; a signed cookie does, for every front door with the key, and where a client keeps none, the
//!   hash of its address (`routes[].stick`).
//! - Endpoints' names are resolved on a runtime of their own and not at each connect: a request never waits for the DNS, and all
//!   addresses of a name get requests. What glibc knows beside `/etc/hosts` and the DNS (mDNS, LDAP) is not asked.
//! - A program of ours has a guard, and not only `PR_SET_PDEATHSIG`: that tells neither its children nor one that has changed its
//!   user, asks nobody to end in order, and no cgroup is ours to count on in a container.
//! - What sandbox a worker needs is compared by folder: one of `files` that was not there at its start stays closed until
//!   there is a new worker.
//! - An application that names a file on a route without `files` gets 404 sent for it, and an event that names the key: its
//!   own answer has the length of the file and no body.

pub mod access;
pub mod admin;
mod allocator;
pub mod backends;
pub mod cli;
pub mod config;
pub mod demo;
mod disk;
pub mod drain;
pub mod files;
pub mod gateway;
pub mod h1;
pub mod http;
pub mod keeper;
pub mod limits;
pub mod listener;
pub mod metrics;
pub mod process;
#[cfg(any(test, feature = "fuzzing"))]
pub mod properties;
pub mod proxy;
pub mod route;
pub mod runtime;
pub mod service;
mod shim;
pub mod splice;
pub mod spool;
pub mod telemetry;
pub mod tls;
mod turns;
pub mod upstream;
