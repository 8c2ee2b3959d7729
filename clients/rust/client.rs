//! A client for a zkv server: copy this file into your program. It needs the crates zmq and rmp.
//!
//! A request is a msgpack map in one frame on a REQ socket, and so is its reply. A REQ socket that is
//! owed a reply refuses the next request for ever, so after a lost reply it is closed, and the same
//! bytes go out on a fresh one: a write carries a session and a number, and runs only once. LINGER
//! is 0, so nothing that was not sent holds up the end of the process.
//!
//! The endpoint may be a list with commas: those of the members of one store. A member that says
//! nothing, or that does not lead, is left for the next one. Before any of them gets a request, INFO
//! has to tell that it has no other store, and no older term of the store, than was seen before.
//!
//! To tcp:// endpoints it speaks CURVE if ZKV_SERVER_PUBLIC_KEY is set. A socket whose handshake is
//! refused stays silent for ever, so its monitor is asked why, until the handshake has succeeded.
#![allow(dead_code)] // the command line does not need all of it

use std::env;
use std::ffi::CString;
use std::io::{self, Read, Write};
use std::os::raw::{c_char, c_int};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rmp::{decode, encode, Marker};

const ATTEMPTS: usize = 3; // for each endpoint
const PAUSE: Duration = Duration::from_millis(100);
const TRIES: u32 = 10; // while its key is changed, a server takes each connection with one key or the other
const SHORT_PAUSE: Duration = Duration::from_millis(30);
const WRITES: [&str; 7] = ["PUT", "DELETE", "TOUCH", "INCR", "MPUT", "MDELETE", "TXN"];
const READS: [&str; 7] = ["PING", "GET", "MGET", "SCAN", "COUNT", "CHANGES", "INFO"];
const MOVES: [&str; 3] = ["NO_REPLY", "HANDSHAKE_FAILED", "NOT_LEADER"]; // another endpoint may do better

/// A msgpack value: all that msgpack has.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Nil,
    Bool(bool),
    Int(i64),
    Uint(u64), // above the range of i64
    F32(f32),
    F64(f64),
    Str(String),
    RawStr(Vec<u8>), // a str that is not UTF-8
    Bin(Vec<u8>),
    Array(Vec<Value>),
    Map(Vec<(Value, Value)>),
    Ext(i8, Vec<u8>),
}

/// The fields of a request.
pub type Fields = Vec<(&'static str, Value)>;

/// Why there is no success.
#[derive(Debug)]
pub enum Error {
    /// The server's failure: the reply, a map with code, message, retry, applied and more.
    Refused(Value),
    /// No reply in time. A write may have been applied, or may yet be.
    NoReply,
    /// This one of several servers got no request: it does not answer INFO, or has another store.
    Unfit { code: &'static str, why: String },
    /// A reply that breaks the protocol.
    BadReply(String),
    /// The server and this client do not get together, so nothing was sent; but if the connection was
    /// merely cut, nobody knows.
    Handshake { why: &'static str, cut: bool },
    /// A key is malformed, or its file is not fit to be used.
    Key(String),
    /// The endpoint is malformed, or ZeroMQ fails.
    Socket(zmq::Error),
}

impl Error {
    pub fn code(&self) -> &str {
        match self {
            Error::Refused(reply) => reply.get("code").text(),
            Error::NoReply => "NO_REPLY",
            Error::Unfit { code, .. } => code,
            Error::BadReply(_) => "BAD_REPLY",
            Error::Handshake { .. } => "HANDSHAKE_FAILED",
            Error::Key(_) => "BAD_KEY",
            Error::Socket(_) => "SOCKET",
        }
    }
    pub fn message(&self) -> String {
        match self {
            Error::Refused(reply) => reply.get("message").text().to_owned(),
            Error::NoReply => "none in time; a write may have been applied".to_owned(),
            Error::BadReply(what) | Error::Key(what) | Error::Unfit { why: what, .. } => what.clone(),
            Error::Handshake { why, .. } => (*why).to_owned(),
            Error::Socket(error) => error.to_string(),
        }
    }
    /// Whether the same request may succeed later.
    pub fn retry(&self) -> bool {
        matches!(self, Error::NoReply | Error::Unfit { .. } | Error::Handshake { cut: true, .. })
            || matches!(self, Error::Refused(reply) if *reply.get("retry") == Value::Bool(true))
    }
    /// `Some(false)`: it changed nothing. `None`: nobody knows.
    pub fn applied(&self) -> Option<bool> {
        match self {
            Error::Refused(reply) if *reply.get("applied") == Value::Bool(false) => Some(false),
            Error::Handshake { cut: false, .. } | Error::Unfit { .. } => Some(false),
            _ => None,
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}: {}", self.code(), self.message())
    }
}
impl std::error::Error for Error {}
impl From<zmq::Error> for Error {
    fn from(error: zmq::Error) -> Self {
        Error::Socket(error)
    }
}

/// One connection, one request at a time.
pub struct Client {
    context: zmq::Context,
    connection: Option<Connection>,
    keys: Keys,
    endpoints: Vec<String>,      // of one store; the first is in use
    seen: Option<(String, i64)>, // what INFO has told: the store, and the newest term of it
    timeout: Duration, // for each attempt
    session: String,
    last_id: i64,
    last_seq: i64,
}

impl Client {
    /// Makes a client, for one endpoint, or for those of one store with commas between them. The server
    /// need not be up; only a malformed endpoint, or key, is an error.
    pub fn connect(endpoint: &str, timeout: Duration) -> Result<Client, Error> {
        let mut random = [0u8; 16];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut random))
            .map_err(|error| Error::BadReply(error.to_string()))?;
        let endpoints: Vec<_> = endpoint.split(',').map(|item| item.trim().to_owned()).collect();
        let mut client = Client {
            context: zmq::Context::new(),
            connection: None,
            keys: Keys::of(&endpoints)?,
            endpoints,
            seen: None,
            timeout,
            session: random.iter().map(|byte| format!("{byte:02x}")).collect(),
            last_id: 0,
            last_seq: 0,
        };
        for _ in 0..client.endpoints.len() {
            client.open()?;
            client.move_on(&[]);
        }
        Ok(client)
    }

    /// Sends any op with its fields and gives the reply, a map.
    pub fn call(&mut self, op: &str, fields: Vec<(Value, Value)>) -> Result<Value, Error> {
        let mut request = vec![(Value::from("op"), Value::from(op))];
        request.extend(fields);
        let given = |request: &Vec<(Value, Value)>, name: &str| {
            request.iter().find(|(key, _)| key.text() == name).map(|(_, value)| value.clone())
        };
        let id = given(&request, "id").filter(|id| *id != Value::Nil).unwrap_or_else(|| {
            self.last_id += 1;
            Value::Int(self.last_id)
        });
        request.retain(|(key, _)| key.text() != "id");
        request.push((Value::from("id"), id.clone()));
        let write = WRITES.contains(&op);
        if write && given(&request, "session").is_none() {
            self.last_seq += 1;
            request.push((Value::from("session"), Value::from(self.session.as_str())));
            request.push((Value::from("seq"), Value::Int(self.last_seq)));
        }
        // Elsewhere, too, though it may have been applied. Other ops, such as END, concern one server.
        let session = given(&request, "session").map_or(false, |session| session != Value::Nil);
        let repeatable = READS.contains(&op) || (write && session);
        let mut body = Vec::new();
        Value::Map(request).pack(&mut body);
        let laps = if repeatable { self.endpoints.len() } else { 1 };
        let mut in_doubt = false; // an attempt may have been applied
        let mut last = Error::NoReply;
        for attempt in 0..if op == "END" { 1 } else { ATTEMPTS * laps } {
            let error = match self.exchange_checked(&body, &id) {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            // Refused now; but what became of an attempt before?
            if !(error.retry() || (in_doubt && matches!(error.code(), "DEADLINE" | "HANDSHAKE_FAILED"))) {
                return Err(error);
            }
            in_doubt |= error.applied().is_none() && error.code() != "HANDSHAKE_FAILED";
            if MOVES.contains(&error.code()) && (repeatable || (write && !in_doubt)) {
                match &error {
                    // One lap follows hints, lest it is sent in circles; the others try all.
                    Error::Refused(reply) if attempt < laps => self.move_on(reply.get("leader").items()),
                    _ => self.move_on(&[]),
                }
            }
            if error.code() != "NO_REPLY" {
                std::thread::sleep(PAUSE);
            }
            last = error;
        }
        Err(if in_doubt && last.applied().is_some() { Error::NoReply } else { last })
    }

    /// Goes to the server that is said to lead, if it is in the list or has to prove its key; else to the
    /// next one.
    fn move_on(&mut self, hints: &[Value]) {
        if self.endpoints.len() == 1 && hints.is_empty() {
            return;
        }
        let left = self.endpoints.remove(0);
        let listed = |hint: &str| self.endpoints.iter().any(|item| item == hint);
        let known = |hint: &&str| *hint != left && (listed(hint) || self.keys.are_for(hint));
        if let Some(next) = hints.iter().map(Value::text).find(known) {
            self.endpoints.retain(|item| item != next);
            self.endpoints.insert(0, next.to_owned());
        }
        self.endpoints.push(left);
        self.connection = None;
    }

    /// The reply to a request. With several endpoints, a server is first asked whose it is.
    fn exchange_checked(&mut self, body: &[u8], id: &Value) -> Result<Value, Error> {
        if self.connection.is_none() && self.endpoints.len() > 1 {
            if let Err(error) = self.check() {
                self.connection = None;
                return Err(error);
            }
        }
        self.exchange(body, id)
    }

    /// Fails if this server is not to get a request.
    fn check(&mut self) -> Result<(), Error> {
        self.last_id += 1;
        let id = Value::Int(self.last_id);
        let mut body = Vec::new();
        Value::Map(vec![("op".into(), "INFO".into()), ("id".into(), id.clone())]).pack(&mut body);
        let info = self.exchange(&body, &id);
        let unfit = |code, why| Err(Error::Unfit { code, why: format!("{}: {why}", self.endpoints[0]) });
        let info = match info {
            Err(Error::NoReply) => return unfit("NO_REPLY", "none to INFO"),
            info => info?,
        };
        let replication = info.get("replication");
        let (store, term) = (replication.get("store").text(), replication.get("term").int());
        match &self.seen {
            Some(seen) if store != seen.0 || term < seen.1 => {
                return unfit("NOT_LEADER", "it has another store, or an older term of it");
            }
            None if store.is_empty() => {}
            _ => self.seen = Some((store.to_owned(), term)),
        }
        Ok(())
    }

    fn ask(&mut self, op: &str, fields: Fields, wanted: &str) -> Result<Value, Error> {
        let fields = fields.into_iter().map(|(name, value)| (Value::from(name), value)).collect();
        let reply = self.call(op, fields)?;
        Ok(reply.get(wanted).clone())
    }
    pub fn get(&mut self, key: &str) -> Result<Value, Error> {
        self.ask("GET", vec![("key", key.into())], "value")
    }
    /// Stores a value and gives its revision.
    pub fn put(&mut self, key: &str, value: Value) -> Result<i64, Error> {
        self.ask("PUT", vec![("key", key.into()), ("value", value)], "rev").map(|rev| rev.int())
    }
    /// Stores a value only if the key has this revision; 0 = only if it is absent.
    pub fn cas(&mut self, key: &str, value: Value, rev: i64) -> Result<i64, Error> {
        let fields = vec![("key", key.into()), ("value", value), ("if_rev", Value::Int(rev))];
        self.ask("PUT", fields, "rev").map(|rev| rev.int())
    }
    pub fn delete(&mut self, key: &str) -> Result<i64, Error> {
        self.ask("DELETE", vec![("key", key.into())], "rev").map(|rev| rev.int())
    }
    /// Adds to an int and gives the sum.
    pub fn incr(&mut self, key: &str, by: i64) -> Result<i64, Error> {
        let fields = vec![("key", key.into()), ("by", Value::Int(by))];
        self.ask("INCR", fields, "value").map(|sum| sum.int())
    }
    /// The values of many keys, `Nil` where there is none.
    pub fn mget(&mut self, keys: &[&str]) -> Result<Vec<Value>, Error> {
        let keys = Value::Array(keys.iter().map(|key| Value::from(*key)).collect());
        self.ask("MGET", vec![("keys", keys)], "values").map(|values| values.items().to_vec())
    }
    pub fn mput(&mut self, items: Vec<(&str, Value)>) -> Result<i64, Error> {
        let items = items.into_iter().map(|(key, value)| (Value::from(key), value)).collect();
        self.ask("MPUT", vec![("items", Value::Map(items))], "rev").map(|rev| rev.int())
    }
    /// Calls `each` with key, value and revision of every key that begins with the prefix.
    pub fn scan(&mut self, prefix: &str, mut each: impl FnMut(&str, &Value, i64)) -> Result<(), Error> {
        let mut after = Value::Nil;
        loop {
            let fields = vec![("prefix".into(), prefix.into()), ("after".into(), after)];
            let page = self.call("SCAN", fields)?;
            for entry in page.get("items").items() {
                each(entry.items()[0].text(), &entry.items()[1], entry.items()[2].int());
            }
            after = page.get("next").clone();
            if after == Value::Nil {
                return Ok(());
            }
        }
    }
    /// Has everything saved and the server ended.
    pub fn end(&mut self) -> Result<i64, Error> {
        self.ask("END", vec![], "rev").map(|rev| rev.int())
    }

    fn open(&mut self) -> Result<&mut Connection, Error> {
        if self.connection.is_none() {
            let fresh = Connection::new(&self.context)?;
            self.keys.secure(&fresh.socket, &self.endpoints[0])?;
            fresh.socket.connect(&self.endpoints[0])?;
            self.connection = Some(fresh);
        }
        Ok(self.connection.as_mut().expect("it is open"))
    }

    /// Sends a body and gives the reply, or the handshake that failed with one of the server's keys after
    /// the other.
    fn exchange(&mut self, body: &[u8], id: &Value) -> Result<Value, Error> {
        for left in (0..TRIES).rev() {
            let answer = self.exchange_once(body).and_then(|frames| judge(frames, id));
            if !matches!(answer, Ok(_) | Err(Error::Refused(_))) {
                self.connection = None;
            }
            if left == 0 || !matches!(answer, Err(Error::Handshake { cut: true, .. })) {
                return answer;
            }
            self.keys.server.rotate_left(1);
            std::thread::sleep(SHORT_PAUSE);
        }
        unreachable!("the last try returns")
    }

    fn exchange_once(&mut self, body: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let end = Instant::now() + self.timeout;
        let keys = self.keys.are_for(&self.endpoints[0]);
        let connection = self.open().map_err(|_| Error::NoReply)?; // a hint may be no endpoint
        let sent = match connection.socket.send(body, zmq::DONTWAIT) {
            Err(zmq::Error::EAGAIN) => false,
            result => result.map(|()| true)?,
        };
        loop {
            if let Some(failed) = connection.failed_handshake(keys)? {
                return Err(failed);
            }
            let left = end.saturating_duration_since(Instant::now());
            if !sent || left.is_zero() {
                return Err(Error::NoReply);
            }
            let mut items = vec![connection.socket.as_poll_item(zmq::POLLIN)];
            items.extend(connection.monitor.iter().map(|monitor| monitor.as_poll_item(zmq::POLLIN)));
            match zmq::poll(&mut items, left.as_millis() as i64 + 1) {
                Ok(_) if items[0].is_readable() => {
                    return Ok(connection.socket.recv_multipart(zmq::DONTWAIT)?);
                }
                Ok(_) | Err(zmq::Error::EINTR) => continue,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

const AUTH: i32 = 0x4000; // events of handshakes: zmq 0.9 does not have them all
const PROTOCOL: i32 = 0x2000;
const SUCCEEDED: i32 = 0x1000;
const NO_DETAIL: i32 = 0x0800;
static MONITORS: AtomicU64 = AtomicU64::new(0);

/// A socket, and a monitor that tells what becomes of its handshake, until that has succeeded.
struct Connection {
    socket: zmq::Socket,
    monitor: Option<zmq::Socket>,
    name: String, // of the monitor
}

impl Connection {
    fn new(context: &zmq::Context) -> Result<Connection, zmq::Error> {
        let name = format!("inproc://zkv-handshake-{}", MONITORS.fetch_add(1, Ordering::Relaxed));
        let (socket, monitor) = (context.socket(zmq::REQ)?, context.socket(zmq::PAIR)?);
        socket.set_linger(0)?;
        socket.monitor(&name, AUTH | PROTOCOL | SUCCEEDED | NO_DETAIL)?;
        monitor.set_rcvhwm(0)?; // no limit: else ZeroMQ might wait for us
        monitor.connect(&name)?;
        Ok(Connection { socket, monitor: Some(monitor), name })
    }

    /// Why nothing was sent; `None` if the handshake has not failed.
    fn failed_handshake(&mut self, keys: bool) -> Result<Option<Error>, zmq::Error> {
        let mut event = 0;
        while let Some(monitor) = &self.monitor {
            match monitor.recv_multipart(zmq::DONTWAIT) {
                Ok(frames) => event = i32::from(u16::from_ne_bytes([frames[0][0], frames[0][1]])),
                Err(zmq::Error::EAGAIN | zmq::Error::EINTR) => break,
                Err(error) => return Err(error),
            }
            if event == SUCCEEDED {
                self.stop_monitor();
            }
        }
        let cut = event == NO_DETAIL; // ZeroMQ goes on trying
        let why = match (event, keys) {
            (AUTH, _) => "the server does not know this client: its key or, on ipc, its system user",
            (PROTOCOL, true) => "the server does not speak CURVE",
            (PROTOCOL, false) => "the server asks for CURVE: set ZKV_SERVER_PUBLIC_KEY",
            (NO_DETAIL, true) => {
                "the handshake was cut: the server has another key than ZKV_SERVER_PUBLIC_KEY says, or no CURVE"
            }
            _ => return Ok(None), // also NO_DETAIL without keys: the server may be about to start
        };
        Ok(Some(Error::Handshake { why, cut }))
    }

    /// Ends the monitor before nobody reads what it tells: another one without events replaces it.
    fn stop_monitor(&mut self) {
        let _ = self.socket.monitor(&format!("{}-over", self.name), 0);
        self.monitor = None;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.stop_monitor();
    }
}

/// Keys of CURVE, each as 40 characters of Z85.
#[derive(Default)]
struct Keys {
    server: Vec<String>, // one of them has to fit; the first is in use
    own_public: String,
    own_secret: String,
}

extern "C" {
    fn zmq_curve_public(public: *mut c_char, secret: *const c_char) -> c_int;
    fn zmq_curve_keypair(public: *mut c_char, secret: *mut c_char) -> c_int;
    fn zmq_z85_decode(bytes: *mut u8, text: *const c_char) -> *mut u8;
}

impl Keys {
    /// Those that the environment tells of, none if no endpoint needs any. Without a file a pair is made.
    fn of(endpoints: &[String]) -> Result<Keys, Error> {
        if !endpoints.iter().any(|endpoint| endpoint.starts_with("tcp://")) {
            return Ok(Keys::default());
        }
        let listed = env::var("ZKV_SERVER_PUBLIC_KEY").unwrap_or_default();
        let server: Vec<_> = listed.split(',').map(|key| key.trim().to_owned()).filter(|key| !key.is_empty()).collect();
        if !server.iter().all(|key| is_key(key)) {
            return Err(Error::Key("ZKV_SERVER_PUBLIC_KEY: not a key: expected 40 characters of Z85".into()));
        }
        let path = env::var("ZKV_KEY_FILE").unwrap_or_default();
        if server.is_empty() && !path.is_empty() {
            return Err(Error::Key("ZKV_KEY_FILE is of no use without ZKV_SERVER_PUBLIC_KEY".into()));
        }
        if server.is_empty() {
            return Ok(Keys::default());
        }
        let (mut public, mut secret) = ([0u8; 41], [0u8; 41]);
        let result = if path.is_empty() {
            unsafe { zmq_curve_keypair(public.as_mut_ptr().cast(), secret.as_mut_ptr().cast()) }
        } else {
            secret[..40].copy_from_slice(read_key_file(&path)?.as_bytes());
            unsafe { zmq_curve_public(public.as_mut_ptr().cast(), secret.as_ptr().cast()) }
        };
        if result != 0 {
            return Err(Error::Key("libzmq was built without CURVE".into()));
        }
        let text = |key: [u8; 41]| String::from_utf8_lossy(&key[..40]).into_owned();
        Ok(Keys { server, own_public: text(public), own_secret: text(secret) })
    }

    /// Whether an endpoint needs them: then there is an answer only from who has the server's.
    fn are_for(&self, endpoint: &str) -> bool {
        !self.server.is_empty() && endpoint.starts_with("tcp://")
    }

    fn secure(&self, socket: &zmq::Socket, endpoint: &str) -> Result<(), zmq::Error> {
        if self.are_for(endpoint) {
            socket.set_curve_serverkey(self.server[0].as_bytes())?;
            socket.set_curve_publickey(self.own_public.as_bytes())?;
            socket.set_curve_secretkey(self.own_secret.as_bytes())?;
        }
        Ok(())
    }
}

fn is_key(text: &str) -> bool {
    let mut bytes = [0u8; 32];
    let decode = |text: CString| !unsafe { zmq_z85_decode(bytes.as_mut_ptr(), text.as_ptr()) }.is_null();
    text.len() == 40 && CString::new(text).map_or(false, decode)
}

fn read_key_file(path: &str) -> Result<String, Error> {
    let bad = |why: String| Error::Key(format!("{path}: {why}"));
    let file = std::fs::File::open(path).map_err(|error| bad(error.to_string()))?;
    let mode = file.metadata().map_err(|error| bad(error.to_string()))?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(bad(format!("others may read it (mode {mode:04o}): chmod 600 {path}")));
    }
    let mut text = Vec::new();
    file.take(128).read_to_end(&mut text).map_err(|error| bad(error.to_string()))?;
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    if is_key(&text) { Ok(text) } else { Err(bad("not a key file: expected one line of 40 characters of Z85".into())) }
}

fn judge(frames: Vec<Vec<u8>>, id: &Value) -> Result<Value, Error> {
    let bad = |what: &str| Error::BadReply(what.to_owned());
    if frames.len() != 1 {
        return Err(bad("it has many frames"));
    }
    let reply = Value::unpack(&frames[0]).map_err(|error| Error::BadReply(error.to_string()))?;
    let (ok, echo) = (reply.get("ok"), reply.get("id"));
    match ok {
        Value::Bool(ok) if echo == id || (!ok && *echo == Value::Nil) => {
            if *ok { Ok(reply) } else { Err(Error::Refused(reply)) }
        }
        _ => Err(bad("it is no map, or has no ok, or another id")),
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Str(text.to_owned())
    }
}

impl Value {
    /// The value under a name in a map, `Nil` where there is none.
    pub fn get(&self, name: &str) -> &Value {
        match self {
            Value::Map(pairs) => pairs.iter().find(|(key, _)| key.text() == name),
            _ => None,
        }
        .map_or(&Value::Nil, |(_, value)| value)
    }
    pub fn text(&self) -> &str {
        if let Value::Str(text) = self { text } else { "" }
    }
    pub fn int(&self) -> i64 {
        if let Value::Int(number) = self { *number } else { 0 }
    }
    pub fn items(&self) -> &[Value] {
        if let Value::Array(items) = self { items } else { &[] }
    }

    /// Appends the value as msgpack.
    pub fn pack(&self, out: &mut Vec<u8>) {
        let fine = "a Vec takes whatever is written";
        match self {
            Value::Nil => encode::write_nil(out).expect(fine),
            Value::Bool(value) => encode::write_bool(out, *value).expect(fine),
            Value::Int(value) => drop(encode::write_sint(out, *value).expect(fine)),
            Value::Uint(value) => drop(encode::write_uint(out, *value).expect(fine)),
            Value::F32(value) => encode::write_f32(out, *value).expect(fine),
            Value::F64(value) => encode::write_f64(out, *value).expect(fine),
            Value::Str(value) => encode::write_str(out, value).expect(fine),
            Value::RawStr(value) => {
                encode::write_str_len(out, value.len() as u32).expect(fine);
                out.write_all(value).expect(fine);
            }
            Value::Bin(value) => encode::write_bin(out, value).expect(fine),
            Value::Array(items) => {
                encode::write_array_len(out, items.len() as u32).expect(fine);
                items.iter().for_each(|item| item.pack(out));
            }
            Value::Map(pairs) => {
                encode::write_map_len(out, pairs.len() as u32).expect(fine);
                pairs.iter().for_each(|(key, value)| {
                    key.pack(out);
                    value.pack(out);
                });
            }
            Value::Ext(kind, data) => {
                encode::write_ext_meta(out, data.len() as u32, *kind).expect(fine);
                out.write_all(data).expect(fine);
            }
        }
    }

    /// The one value in the bytes.
    pub fn unpack(mut bytes: &[u8]) -> io::Result<Value> {
        let value = read(&mut bytes)?;
        if bytes.is_empty() { Ok(value) } else { Err(no_msgpack("something stands behind it")) }
    }
}

fn no_msgpack(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn take<'a>(bytes: &mut &'a [u8], size: usize) -> io::Result<&'a [u8]> {
    if size > bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let (head, tail) = bytes.split_at(size);
    *bytes = tail;
    Ok(head)
}

fn number(bytes: &mut &[u8], size: usize) -> io::Result<u64> {
    Ok(take(bytes, size)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn read(bytes: &mut &[u8]) -> io::Result<Value> {
    let marker = decode::read_marker(bytes).map_err(|_| no_msgpack("it ends too early"))?;
    let length = |bytes: &mut &[u8], size| number(bytes, size).map(|length| length as usize);
    Ok(match marker {
        Marker::Null => Value::Nil,
        Marker::True => Value::Bool(true),
        Marker::False => Value::Bool(false),
        Marker::FixPos(value) => Value::Int(value.into()),
        Marker::FixNeg(value) => Value::Int(value.into()),
        Marker::U8 => unsigned(number(bytes, 1)?),
        Marker::U16 => unsigned(number(bytes, 2)?),
        Marker::U32 => unsigned(number(bytes, 4)?),
        Marker::U64 => unsigned(number(bytes, 8)?),
        Marker::I8 => Value::Int((number(bytes, 1)? as i8).into()),
        Marker::I16 => Value::Int((number(bytes, 2)? as i16).into()),
        Marker::I32 => Value::Int((number(bytes, 4)? as i32).into()),
        Marker::I64 => Value::Int(number(bytes, 8)? as i64),
        Marker::F32 => Value::F32(f32::from_bits(number(bytes, 4)? as u32)),
        Marker::F64 => Value::F64(f64::from_bits(number(bytes, 8)?)),
        Marker::FixStr(size) => text(take(bytes, size.into())?),
        Marker::Str8 => { let size = length(bytes, 1)?; text(take(bytes, size)?) }
        Marker::Str16 => { let size = length(bytes, 2)?; text(take(bytes, size)?) }
        Marker::Str32 => { let size = length(bytes, 4)?; text(take(bytes, size)?) }
        Marker::Bin8 => { let size = length(bytes, 1)?; Value::Bin(take(bytes, size)?.to_vec()) }
        Marker::Bin16 => { let size = length(bytes, 2)?; Value::Bin(take(bytes, size)?.to_vec()) }
        Marker::Bin32 => { let size = length(bytes, 4)?; Value::Bin(take(bytes, size)?.to_vec()) }
        Marker::FixArray(size) => array(bytes, size.into())?,
        Marker::Array16 => { let size = length(bytes, 2)?; array(bytes, size)? }
        Marker::Array32 => { let size = length(bytes, 4)?; array(bytes, size)? }
        Marker::FixMap(size) => map(bytes, size.into())?,
        Marker::Map16 => { let size = length(bytes, 2)?; map(bytes, size)? }
        Marker::Map32 => { let size = length(bytes, 4)?; map(bytes, size)? }
        Marker::FixExt1 => ext(bytes, 1)?,
        Marker::FixExt2 => ext(bytes, 2)?,
        Marker::FixExt4 => ext(bytes, 4)?,
        Marker::FixExt8 => ext(bytes, 8)?,
        Marker::FixExt16 => ext(bytes, 16)?,
        Marker::Ext8 => { let size = length(bytes, 1)?; ext(bytes, size)? }
        Marker::Ext16 => { let size = length(bytes, 2)?; ext(bytes, size)? }
        Marker::Ext32 => { let size = length(bytes, 4)?; ext(bytes, size)? }
        Marker::Reserved => return Err(no_msgpack("a byte that msgpack does not use")),
    })
}

fn unsigned(value: u64) -> Value {
    i64::try_from(value).map_or(Value::Uint(value), Value::Int)
}
fn text(bytes: &[u8]) -> Value {
    String::from_utf8(bytes.to_vec()).map_or_else(|error| Value::RawStr(error.into_bytes()), Value::Str)
}
fn array(bytes: &mut &[u8], size: usize) -> io::Result<Value> {
    (0..size).map(|_| read(bytes)).collect::<io::Result<_>>().map(Value::Array)
}
fn map(bytes: &mut &[u8], size: usize) -> io::Result<Value> {
    (0..size).map(|_| Ok((read(bytes)?, read(bytes)?))).collect::<io::Result<_>>().map(Value::Map)
}
fn ext(bytes: &mut &[u8], size: usize) -> io::Result<Value> {
    let kind = number(bytes, 1)? as i8;
    Ok(Value::Ext(kind, take(bytes, size)?.to_vec()))
}
