//! The command line of client.rs: put, get, delete, incr, end; and call, by which tests drive it.
//! Exit status: 0 done, 1 NOT_FOUND or CONFLICT, 2 usage or any other failure, 3 no answer in time.

mod client;

use std::io::{self, BufRead, Read, Write};
use std::time::Duration;

use client::{Client, Error, Value};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn read_value(word: &str) -> io::Result<Value> {
    if word != "-" {
        return Ok(word.into());
    }
    let mut data = Vec::new();
    io::stdin().read_to_end(&mut data)?;
    Ok(String::from_utf8(data).map_or_else(|error| Value::Bin(error.into_bytes()), Value::Str))
}

/// Something close to JSON.
fn describe(value: &Value) -> String {
    match value {
        Value::Nil => "null".into(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Uint(value) => value.to_string(),
        Value::F32(value) => format!("{value:?}"),
        Value::F64(value) => format!("{value:?}"),
        Value::Array(items) => format!("[{}]", items.iter().map(describe).collect::<Vec<_>>().join(", ")),
        Value::Map(pairs) => {
            let pairs = pairs.iter().map(|(key, value)| format!("{}: {}", describe(key), describe(value)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
        other => format!("{other:?}"),
    }
}

fn print_value(value: &Value) -> io::Result<()> {
    let mut out = match value {
        Value::Str(text) => text.clone().into_bytes(),
        Value::Bin(data) | Value::RawStr(data) => data.clone(),
        other => describe(other).into_bytes(),
    };
    out.push(b'\n');
    io::stdout().write_all(&out)
}

fn done(rev: i64) {
    eprintln!("OK, revision {rev}");
}

fn told(error: Error) -> Value {
    if let Error::Refused(reply) = error {
        return reply;
    }
    Value::Map(vec![
        ("ok".into(), Value::Bool(false)),
        ("code".into(), error.code().into()),
        ("message".into(), error.message().as_str().into()),
        ("retry".into(), Value::Bool(error.retry())),
        ("applied".into(), error.applied().map_or(Value::Nil, Value::Bool)),
    ])
}

fn call_each(client: &mut Client) -> Outcome {
    for line in io::stdin().lock().lines() {
        let line = line?;
        let bytes: Result<Vec<u8>, _> =
            (0..line.len() / 2).map(|at| u8::from_str_radix(&line[2 * at..2 * at + 2], 16)).collect();
        let request = Value::unpack(&bytes?)?;
        let op = request.get("op").text().to_owned();
        let mut fields = match request {
            Value::Map(fields) => fields,
            _ => return Err("no request".into()),
        };
        fields.retain(|(name, _)| name.text() != "op");
        let mut out = Vec::new();
        client.call(&op, fields).unwrap_or_else(told).pack(&mut out);
        let hex: String = out.iter().map(|byte| format!("{byte:02x}")).collect();
        println!("{hex}");
    }
    Ok(())
}

fn run(client: &mut Client, words: &[&str]) -> Outcome {
    let command = words.first().map(|word| word.to_lowercase()).unwrap_or_default();
    match (command.as_str(), &words[1.min(words.len())..]) {
        ("put", [key, value]) => done(client.put(key, read_value(value)?)?),
        ("get", [key]) => print_value(&client.get(key)?)?,
        ("delete", [key]) => done(client.delete(key)?),
        ("incr", [key]) => println!("{}", client.incr(key, 1)?),
        ("incr", [key, by]) => println!("{}", client.incr(key, by.parse()?)?),
        ("end", []) => done(client.end()?),
        ("call", []) => call_each(client)?,
        _ => return Err("put KEY VALUE, get KEY, delete KEY, incr KEY [BY], end, call".into()),
    }
    Ok(())
}

fn begin(words: &[String]) -> Outcome {
    let mut endpoint = std::env::var("ZKV_ENDPOINT").unwrap_or_default();
    if endpoint.is_empty() {
        endpoint = "tcp://127.0.0.1:5555".into();
    }
    let (mut timeout, mut words) = (5.0, words);
    while let [option, value, rest @ ..] = words {
        match option.as_str() {
            "-e" => endpoint = value.clone(),
            "--timeout" => timeout = value.parse()?,
            _ => break,
        }
        words = rest;
    }
    let mut client = Client::connect(&endpoint, Duration::from_millis((timeout * 1000.0) as u64))?;
    run(&mut client, &words.iter().map(String::as_str).collect::<Vec<_>>())
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Err(error) = begin(&words) {
        eprintln!("client: {error}");
        std::process::exit(match error.downcast_ref::<Error>().map(Error::code) {
            Some("NO_REPLY") => 3,
            Some("NOT_FOUND" | "CONFLICT") => 1,
            _ => 2,
        });
    }
}
