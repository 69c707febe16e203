//! A body that compresses another as it is read.

use std::{
    io::{self, Write},
    pin::Pin,
    task::{Context, Poll},
};

use brotli::{CompressorWriter, enc::BrotliEncoderParams};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::StatusCode;
use http_body::{Body as _, Frame};
use zstd::zstd_safe::CParameter;

use super::Coding;
use crate::http::{Body, GatewayError};

/// A body, compressed.
///
/// At most [`EncodedBody::STEP`] bytes are compressed in one poll, so that no response keeps the others of its thread
/// waiting. When the source has nothing to give for now, what it gave so far is flushed: a slow stream arrives as it
/// is written. An error of the source is passed on without the end of the compressed stream, so that no decoder takes
/// a part for the whole.
///
/// One frame of the source is held besides the compressor's own memory, at most about: gzip 0.4 MiB, brotli 2 MiB,
/// zstd 1.3 MiB, less where a short length is known beforehand.
pub(super) struct EncodedBody {
    source: Body,
    /// `None` when the compressed stream has ended, well or not.
    encoder: Option<Encoder>,
    /// Of the source, not yet compressed.
    input: Bytes,
    /// There is input in the compressor since the last flush.
    unflushed: bool,
    /// Of the source; sent after the end of the compressed stream.
    trailers: Option<Frame<Bytes>>,
}

impl EncodedBody {
    /// Bytes of input in one poll.
    const STEP: usize = 64 * 1024;
    /// What a frame of the source counts at least, however small.
    const FRAME: usize = 256;

    /// `length` is that of `source`, if it is known: with more or less, a zstd stream fails.
    ///
    /// Gives `source` back if the compressor cannot be made.
    pub(super) fn new(coding: Coding, source: Body, length: Option<u64>) -> Result<Self, Body> {
        match Encoder::new(coding, length) {
            Ok(encoder) => {
                Ok(Self { source, encoder: Some(encoder), input: Bytes::new(), unflushed: false, trailers: None })
            }
            Err(_) => Err(source),
        }
    }

    fn poll_encoded(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let Some(encoder) = &mut self.encoder else { return Poll::Ready(self.trailers.take().map(Ok)) };
        let mut room = Self::STEP;
        while room > 0 {
            if self.input.is_empty() {
                match Pin::new(&mut self.source).poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) => self.input = data,
                        Err(trailers) => {
                            self.trailers = Some(trailers);
                            return Poll::Ready(Some(self.finish()));
                        }
                    },
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(Failure::Source(error)))),
                    Poll::Ready(None) => return Poll::Ready(Some(self.finish())),
                    Poll::Pending => {
                        if std::mem::take(&mut self.unflushed) {
                            encoder.flush()?;
                        }
                        return encoder.frame().map_or(Poll::Pending, |frame| Poll::Ready(Some(Ok(frame))));
                    }
                }
            }
            let piece = self.input.split_to(self.input.len().min(room));
            self.unflushed |= !piece.is_empty();
            encoder.write_all(&piece)?;
            room = room.saturating_sub(piece.len().max(Self::FRAME));
        }
        // brotli would collect half a mebibyte and then do all of its work at once.
        if encoder.output().is_empty() && std::mem::take(&mut self.unflushed) {
            encoder.flush()?;
        }
        encoder.frame().map_or_else(
            || {
                // Nothing but empty frames: the turn of the others, then more.
                cx.waker().wake_by_ref();
                Poll::Pending
            },
            |frame| Poll::Ready(Some(Ok(frame))),
        )
    }

    /// The last of the compressed stream.
    fn finish(&mut self) -> Result<Frame<Bytes>, Failure> {
        let encoder = self.encoder.take().expect("an encoder is finished once");
        Ok(Frame::data(encoder.finish()?.into()))
    }
}

impl http_body::Body for EncodedBody {
    type Data = Bytes;
    type Error = GatewayError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, GatewayError>>> {
        let this = self.get_mut();
        let polled = std::task::ready!(this.poll_encoded(cx));
        Poll::Ready(polled.map(|result| {
            result.map_err(|failure| {
                this.encoder = None;
                this.trailers = None;
                failure.into()
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.encoder.is_none() && self.trailers.is_none()
    }
}

/// Why a compressed body does not end as it should.
enum Failure {
    Source(GatewayError),
    Compressor(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Compressor(error)
    }
}

impl From<Failure> for GatewayError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Source(error) => error,
            Failure::Compressor(error) => {
                Self::gateway(StatusCode::INTERNAL_SERVER_ERROR, "cannot compress the response").source(error)
            }
        }
    }
}

/// A compressor that writes to memory.
enum Encoder {
    Gzip(GzEncoder<Vec<u8>>),
    Brotli(Box<CompressorWriter<Vec<u8>>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl Encoder {
    fn new(coding: Coding, length: Option<u64>) -> io::Result<Self> {
        Ok(match coding {
            Coding::Gzip => Self::Gzip(GzEncoder::new(Vec::new(), Compression::new(5))),
            Coding::Brotli => {
                let size_hint = length.and_then(|length| usize::try_from(length).ok()).unwrap_or_default();
                // The compressor is sized by its window.
                let lgwin = if (1..1 << 16).contains(&size_hint) { 16 } else { WINDOW_LOG.cast_signed() };
                let parameters = BrotliEncoderParams { quality: 4, lgwin, size_hint, ..Default::default() };
                Self::Brotli(Box::new(CompressorWriter::with_params(Vec::new(), 4096, &parameters)))
            }
            Coding::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3)?;
                encoder.set_pledged_src_size(length)?;
                encoder.set_parameter(CParameter::WindowLog(WINDOW_LOG))?;
                Self::Zstd(encoder)
            }
        })
    }

    /// What has been compressed since the last call, if that is anything.
    fn frame(&mut self) -> Option<Frame<Bytes>> {
        let output = std::mem::take(self.output());
        (!output.is_empty()).then(|| Frame::data(output.into()))
    }

    fn output(&mut self) -> &mut Vec<u8> {
        match self {
            Self::Gzip(encoder) => encoder.get_mut(),
            Self::Brotli(encoder) => encoder.get_mut(),
            Self::Zstd(encoder) => encoder.get_mut(),
        }
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(encoder) => encoder.finish(),
            Self::Brotli(encoder) => Ok(encoder.into_inner()),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl Write for Encoder {
    fn write(&mut self, input: &[u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(encoder) => encoder.write(input),
            Self::Brotli(encoder) => encoder.write(input),
            Self::Zstd(encoder) => encoder.write(input),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Gzip(encoder) => encoder.flush(),
            Self::Brotli(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}

/// Binary logarithm of the window of brotli and zstd, in bytes: it bounds the memory here and in the client.
const WINDOW_LOG: u32 = 18;

#[cfg(test)]
mod tests {
    use std::{cell::Cell, collections::VecDeque, rc::Rc};

    use http::{HeaderMap, HeaderValue};
    use http_body_util::BodyExt as _;
    use proptest::prelude::*;

    use super::{super::tests::decode, *};

    /// Steps of a source; counts the bytes it has given.
    struct Script {
        steps: VecDeque<Step>,
        given: Rc<Cell<usize>>,
    }

    #[derive(Clone, Debug)]
    enum Step {
        Data(Vec<u8>),
        Wait,
        Trailers,
        Fail,
    }

    impl http_body::Body for Script {
        type Data = Bytes;
        type Error = GatewayError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, GatewayError>>> {
            Poll::Ready(Some(match self.steps.pop_front() {
                None => return Poll::Ready(None),
                Some(Step::Wait) => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Some(Step::Data(data)) => {
                    self.given.set(self.given.get() + data.len());
                    Ok(Frame::data(data.into()))
                }
                Some(Step::Trailers) => {
                    Ok(Frame::trailers(HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("t"))])))
                }
                Some(Step::Fail) => Err(GatewayError::upstream(StatusCode::BAD_GATEWAY, "the endpoint went away")),
            }))
        }
    }

    fn encoded(coding: Coding, steps: Vec<Step>) -> (EncodedBody, Rc<Cell<usize>>) {
        let given = Rc::new(Cell::new(0));
        let source = Body::stream(Script { steps: steps.into(), given: Rc::clone(&given) });
        let Ok(body) = EncodedBody::new(coding, source, None) else { panic!("no memory for {coding:?}") };
        (body, given)
    }

    /// Bytes that do not compress.
    fn noise(length: usize) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(7);
        std::iter::repeat_with(|| random.u8(..)).take(length).collect()
    }

    #[tokio::test]
    async fn an_error_of_the_source_is_passed_on_and_no_end_is_made() {
        for coding in Coding::ALL {
            let (mut body, _) = encoded(coding, vec![Step::Data(noise(200_000)), Step::Wait, Step::Fail]);
            let mut sent = Vec::new();

            let error = loop {
                match body.frame().await.unwrap() {
                    Ok(frame) => sent.extend_from_slice(&frame.into_data().unwrap()),
                    Err(error) => break error,
                }
            };

            assert_eq!(error.to_string(), "the endpoint went away");
            assert!(body.frame().await.is_none(), "{coding:?}");
            assert!(decode(coding, &sent).is_err(), "{coding:?}: half a body passes for the whole");
        }
    }

    #[tokio::test]
    async fn a_source_that_pauses_has_what_it_gave_passed_on() {
        for coding in Coding::ALL {
            let (mut body, _) = encoded(
                coding,
                vec![Step::Data(b"the first half".to_vec()), Step::Wait, Step::Data(b", the second".to_vec())],
            );

            let first = body.frame().await.unwrap().unwrap().into_data().unwrap();

            let decoded = decode_what_is_there(coding, &first);
            assert_eq!(decoded, b"the first half", "{coding:?}");
        }
    }

    /// As a browser does it: as far as the bytes go.
    fn decode_what_is_there(coding: Coding, bytes: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        let mut reader: Box<dyn io::Read> = match coding {
            Coding::Gzip => Box::new(flate2::read::GzDecoder::new(bytes)),
            Coding::Brotli => Box::new(brotli::Decompressor::new(bytes, 4096)),
            Coding::Zstd => Box::new(zstd::stream::read::Decoder::new(bytes).unwrap()),
        };
        let mut byte = [0];
        while matches!(reader.read(&mut byte), Ok(1)) {
            plain.push(byte[0]);
        }
        plain
    }

    #[tokio::test]
    async fn one_poll_takes_a_bounded_step_of_a_large_frame() {
        for coding in Coding::ALL {
            let (mut body, _) = encoded(coding, vec![Step::Data(noise(1 << 20))]);
            let mut frames = 0;

            while let Some(frame) = body.frame().await {
                let length = frame.unwrap().into_data().unwrap().len();
                assert!(length <= 2 * EncodedBody::STEP, "{coding:?}: {length} bytes at once");
                frames += 1;
            }

            assert!(frames >= (1 << 20) / EncodedBody::STEP, "{coding:?}: {frames} frames");
        }
    }

    #[tokio::test]
    async fn the_source_is_read_no_further_than_a_step_ahead() {
        for coding in Coding::ALL {
            let (mut body, given) = encoded(coding, (0..1000).map(|_| Step::Data(noise(1024))).collect());
            let mut polls = 0;

            while given.get() < 500 * 1024 {
                let before = given.get();
                drop(std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx))).await);
                polls += 1;
                assert!(given.get() - before <= EncodedBody::STEP, "{coding:?}: {} bytes", given.get() - before);
            }

            assert!(polls >= 7);
        }
    }

    #[tokio::test]
    async fn trailers_follow_the_end_of_the_compressed_stream() {
        for coding in Coding::ALL {
            let (body, _) = encoded(coding, vec![Step::Data(b"text".to_vec()), Step::Trailers]);

            let collected = body.collect().await.unwrap();

            assert_eq!(collected.trailers().unwrap()[http::header::ETAG], "t");
            assert_eq!(decode(coding, &collected.to_bytes()).unwrap(), b"text");
        }
    }

    #[tokio::test]
    async fn a_source_shorter_than_its_length_does_not_end_as_whole_with_zstd() {
        let Ok(body) = EncodedBody::new(Coding::Zstd, Body::from(Bytes::from("short")), Some(500)) else {
            panic!("no memory")
        };

        assert!(body.collect().await.is_err());
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let data = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..300),
            (any::<u8>(), 0_usize..200_000).prop_map(|(byte, length)| vec![byte; length]),
            (0_usize..150_000).prop_map(noise),
        ];
        proptest::collection::vec(prop_oneof![4 => data.prop_map(Step::Data), 1 => Just(Step::Wait)], 0..10)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn what_is_compressed_in_any_pieces_is_decompressed_whole(steps in steps()) {
            let plain: Vec<u8> = steps.iter().flat_map(|step| if let Step::Data(data) = step { data.clone() } else { Vec::new() }).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            for coding in Coding::ALL {
                let (body, _) = encoded(coding, steps.clone());
                let compressed = runtime.block_on(body.collect()).unwrap().to_bytes();
                prop_assert!(decode(coding, &compressed).unwrap() == plain, "{:?}", coding);
            }
        }
    }
}
