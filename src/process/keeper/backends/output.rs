//! What instances write.

use std::time::Duration;

use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    time::{Instant, sleep_until},
};

/// Writes what an instance says into the log, line by line.
pub(super) async fn tell(backend: String, instance: u32, mut output: pipe::Receiver) {
    let (mut read, mut line) = ([0; 4096], Vec::new());
    let (mut since, mut lines, mut bytes) = (Instant::now(), 0, 0);
    let end_line = |line: &mut Vec<u8>| {
        let text: String = String::from_utf8_lossy(line).chars().filter(|c| !c.is_control()).collect();
        line.clear();
        if !text.is_empty() {
            tracing::info!(backend, instance, "{text}");
        }
    };
    while let Ok(length @ 1..) = output.read(&mut read).await {
        for byte in &read[..length] {
            if *byte == b'\n' || line.len() == LINE {
                end_line(&mut line);
                lines += 1;
            }
            if *byte != b'\n' {
                line.push(*byte);
            }
            bytes += 1;
            if lines >= LINES || bytes >= BYTES {
                // The pipe fills meanwhile, and the program waits: all else that is to be done here does not.
                sleep_until(since + Duration::from_secs(1)).await;
                (since, lines, bytes) = (Instant::now(), 0, 0);
            }
        }
    }
    end_line(&mut line);
}

/// Of what is logged of an instance: bytes of a line, lines and bytes in a second.
const LINE: usize = 1000;
const LINES: u32 = 1000;
const BYTES: u32 = 256 * 1024;
