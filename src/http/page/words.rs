//! What our answers say, in words for whoever reads them.

use http::StatusCode;

use super::Stage;

/// What a status means, in words for whoever sees the page.
pub(super) struct Words {
    pub(super) title: &'static str,
    pub(super) happened: &'static str,
    pub(super) advice: &'static str,
    /// Trying the same again makes sense.
    pub(super) retry: bool,
}

impl Words {
    /// For whoever has to wait for the application.
    pub(super) fn waiting(stage: Stage) -> Self {
        match stage {
            Stage::Starting => Self::again(
                "Starting up",
                "The application is starting. This takes a minute or two after an update or a restart.",
                "You do not need to do anything: this page looks again by itself.",
            ),
            Stage::Gone => Self::again(
                "The application has stopped answering",
                "It was there before; it is being restarted, or it has failed.",
                "This page looks again by itself. If you were sending something, check then whether it has arrived.",
            ),
            Stage::Stopping => Self::again(
                "Being shut down or restarted",
                "This site is being shut down, or restarted for maintenance.",
                "This page looks again by itself. If you were sending something, send it again then.",
            ),
            Stage::Stopped => Self::again(
                "The application is stopped",
                "Whoever runs this site has stopped the application.",
                "This page looks again by itself. If you were sending something, send it again then.",
            ),
            Stage::Failed => Self::again(
                "The application has failed",
                "The application has ended or could not be started, and whoever runs this site has to look at it.",
                "This page looks again by itself. If this goes on, tell whoever runs this site.",
            ),
        }
    }

    pub(super) fn of(status: StatusCode) -> Self {
        match status.as_u16() {
            400 => Self::once(
                "The request could not be read",
                "Something in the request is not as it must be.",
                "Check the address. If a link or a form brought you here, go back and try once more.",
            ),
            401 => Self::once(
                "A password is needed",
                "This address is only for those who have a name and a password here.",
                "Load the page again to be asked for them. If you have none, ask whoever runs this site.",
            ),
            403 => Self::once(
                "This is not for everybody",
                "This address is only for those whom the site knows.",
                "If you are one of them, ask whoever runs this site.",
            ),
            404 => Self::once(
                "Page not found",
                "There is nothing at this address.",
                "Check the address for a slip, or go back to the page you came from.",
            ),
            405 => Self::once(
                "This is not possible here",
                "This address does not take this kind of request.",
                "Go back to the page you came from.",
            ),
            408 => Self::again(
                "The request took too long",
                "The request did not arrive in full, and we stopped waiting for it.",
                "The connection may be slow or have broken off. Go back and send it again.",
            ),
            413 => Self::once(
                "This is too large",
                "What was sent is larger than this site takes.",
                "Go back and choose a smaller file, or send several files one after the other.",
            ),
            414 => Self::once(
                "The address is too long",
                "The address of this request is longer than this site takes.",
                "Shorten it, or go back to the page you came from.",
            ),
            417 => Self::once(
                "An expectation cannot be met",
                "The request expects something of this site that it does not do.",
                "This is a matter of the program that sent it; a browser does not do this.",
            ),
            421 => Self::again(
                "This went to the wrong place",
                "The request came over a connection that belongs to another site.",
                "Load the page again; the browser then makes a connection of its own.",
            ),
            429 => Self::again(
                "Too many requests",
                "More requests came from your address than this site takes at a time.",
                "Wait a little before you try again.",
            ),
            431 => Self::once(
                "The request has too much around it",
                "The cookies or other fields the browser sent are larger than this site takes.",
                "Delete the cookies of this site in your browser, then load the page again.",
            ),
            500 => Self::again(
                "Something went wrong",
                "A fault of this site kept it from answering.",
                "Try again in a moment. If it happens again, tell whoever runs this site.",
            ),
            501 => Self::once(
                "This is not possible here",
                "This site does not know this kind of request.",
                "Go back to the page you came from.",
            ),
            502 => Self::again(
                "The application did not answer",
                "No complete answer came back from the application.",
                "Try again in a moment. If you were sending something, check first whether it has arrived.",
            ),
            503 => Self::again(
                "The application is not available",
                "It is busy or being restarted.",
                "Try again in a moment.",
            ),
            504 => Self::again(
                "The application took too long",
                "The application did not answer in time.",
                "Try again in a moment. If you were sending something, check first whether it has arrived.",
            ),
            505 => Self::once(
                "This version of HTTP is not spoken here",
                "The request uses a version of HTTP that this site does not speak.",
                "This is a matter of the program that sent it; a browser does not do this.",
            ),
            _ => Self {
                title: status.canonical_reason().unwrap_or("Something went wrong"),
                happened: "The request could not be answered as it should.",
                advice: "Go back to the page you came from.",
                retry: status.is_server_error(),
            },
        }
    }

    fn again(title: &'static str, happened: &'static str, advice: &'static str) -> Self {
        Self { title, happened, advice, retry: true }
    }

    fn once(title: &'static str, happened: &'static str, advice: &'static str) -> Self {
        Self { title, happened, advice, retry: false }
    }
}
