//! A client for a zkv server: copy this file into your program. It needs the crates zmq and rmp.
//!
//! A request is a msgpack map in one frame on a REQ socket, and so is its reply. A REQ socket that is
//! owed a reply refuses the next request for ever, so after a lost reply it is closed, and the same
//! bytes go out on a fresh one: a write carries a session and a number, and runs only once. LINGER
//! is 0, so nothing that was not sent holds up the end of the process.
#![allow(dead_code)] // the command line does not need all of it

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use rmp::{decode, encode, Marker};

const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(100);
const WRITES: [&str; 7] = ["PUT", "DELETE", "TOUCH", "INCR", "MPUT", "MDELETE", "TXN"];

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
    /// A reply that breaks the protocol.
    BadReply(String),
    /// The endpoint is malformed, or ZeroMQ fails.
    Socket(zmq::Error),
}

impl Error {
    pub fn code(&self) -> &str {
        match self {
            Error::Refused(reply) => reply.get("code").text(),
            Error::NoReply => "NO_REPLY",
            Error::BadReply(_) => "BAD_REPLY",
            Error::Socket(_) => "SOCKET",
        }
    }
    pub fn message(&self) -> String {
        match self {
            Error::Refused(reply) => reply.get("message").text().to_owned(),
            Error::NoReply => "none in time; a write may have been applied".to_owned(),
            Error::BadReply(what) => what.clone(),
            Error::Socket(error) => error.to_string(),
        }
    }
    /// Whether the same request may succeed later.
    pub fn retry(&self) -> bool {
        matches!(self, Error::NoReply)
            || matches!(self, Error::Refused(reply) if *reply.get("retry") == Value::Bool(true))
    }
    /// `Some(false)`: it changed nothing. `None`: nobody knows.
    pub fn applied(&self) -> Option<bool> {
        match self {
            Error::Refused(reply) if *reply.get("applied") == Value::Bool(false) => Some(false),
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
    socket: Option<zmq::Socket>,
    endpoint: String,
    timeout: Duration, // for each attempt
    session: String,
    last_id: i64,
    last_seq: i64,
}

impl Client {
    /// Makes a client. The server need not be up; only a malformed endpoint is an error.
    pub fn connect(endpoint: &str, timeout: Duration) -> Result<Client, Error> {
        let mut random = [0u8; 16];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut random))
            .map_err(|error| Error::BadReply(error.to_string()))?;
        let mut client = Client {
            context: zmq::Context::new(),
            socket: None,
            endpoint: endpoint.to_owned(),
            timeout,
            session: random.iter().map(|byte| format!("{byte:02x}")).collect(),
            last_id: 0,
            last_seq: 0,
        };
        client.open()?;
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
        if WRITES.contains(&op) && given(&request, "session").is_none() {
            self.last_seq += 1;
            request.push((Value::from("session"), Value::from(self.session.as_str())));
            request.push((Value::from("seq"), Value::Int(self.last_seq)));
        }
        let mut body = Vec::new();
        Value::Map(request).pack(&mut body);
        let (mut lost, mut refused) = (false, None);
        for _ in 0..if op == "END" { 1 } else { ATTEMPTS } {
            let frames = match self.exchange(&body)? {
                Some(frames) => frames,
                None => {
                    self.socket = None;
                    lost = true;
                    continue;
                }
            };
            let error = match judge(frames, &id) {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            if let Error::BadReply(_) = error {
                self.socket = None;
            }
            // Refused now; but what became of an attempt before, whose reply was lost?
            if !(error.retry() || (lost && error.code() == "DEADLINE")) {
                return Err(error);
            }
            refused = Some(error);
            std::thread::sleep(PAUSE);
        }
        Err(refused.filter(|_| !lost).unwrap_or(Error::NoReply))
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

    fn open(&mut self) -> Result<&zmq::Socket, zmq::Error> {
        if self.socket.is_none() {
            let socket = self.context.socket(zmq::REQ)?;
            socket.set_linger(0)?;
            socket.connect(&self.endpoint)?;
            self.socket = Some(socket);
        }
        Ok(self.socket.as_ref().expect("it is open"))
    }

    /// Sends a body and gives the frames that come back, `None` if none come in time.
    fn exchange(&mut self, body: &[u8]) -> Result<Option<Vec<Vec<u8>>>, Error> {
        let end = Instant::now() + self.timeout;
        let socket = self.open()?;
        socket.send(body, zmq::DONTWAIT)?;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match socket.poll(zmq::POLLIN, left.as_millis() as i64 + 1) {
                Ok(0) if left.is_zero() => return Ok(None),
                Ok(0) | Err(zmq::Error::EINTR) => continue,
                Ok(_) => return Ok(Some(socket.recv_multipart(zmq::DONTWAIT)?)),
                Err(error) => return Err(error.into()),
            }
        }
    }
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
