//! An aggregator that knows a few answers by heart, and the program that asks it.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    process::{Command, Output},
    sync::{Arc, Mutex},
};

/// An HTTP server that knows a few answers by heart and notes what it was asked.
pub struct Canned {
    pub url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Canned {
    /// One that answers each `METHOD PATH` so, and anything else with 404.
    pub fn start<'a>(answers: impl IntoIterator<Item = (&'a str, Vec<u8>)>) -> Self {
        let answers: BTreeMap<String, Vec<u8>> =
            answers.into_iter().map(|(question, answer)| (question.to_owned(), answer)).collect();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&asked);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.expect("loopback");
                let (question, body) = read_request(&stream);
                let answer = answers.get(question.as_str());
                notes.lock().expect("no panic").push(format!("{question} {body}").trim_end().to_owned());
                let missing = br#"{"error": "no such thing"}"#.to_vec();
                let (status, body) = answer.map_or(("404 Not Found", &missing), |body| ("200 OK", body));
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                (&stream).write_all(&[head.as_bytes(), body].concat()).expect("loopback");
            }
        });
        Self { url, asked }
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        sagectl(&[&["--url", &self.url], arguments].concat())
    }

    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").clone()
    }
}

/// `METHOD PATH` and the body.
fn read_request(stream: impl Read) -> (String, String) {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).expect("a request");
    let mut len = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a header");
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            len = value.trim().parse().expect("a length");
        }
    }
    let mut body = vec![0; len];
    reader.read_exact(&mut body).expect("the body");
    let question: Vec<&str> = first.split(' ').take(2).collect();
    (question.join(" "), String::from_utf8(body).expect("text"))
}

pub fn sagectl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sagectl")).args(arguments).output().expect("sagectl runs")
}

pub fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

pub fn complaint(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

pub fn assert_fits(text: &str) {
    let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
    assert!(widest <= 100, "{widest} columns:\n{text}");
    assert!(!text.contains('\x1b'), "no colours into a pipe");
}
