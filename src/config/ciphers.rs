//! The ciphers of TLS 1.2, by the names that OpenSSL, nginx and Apache have for them.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::read::{Scalar, suggestion};

/// A cipher suite of TLS 1.2 that is spoken here: forward secret and authenticated (AEAD), as there are no others.
///
/// TLS 1.3 has suites of its own, none of which is worth leaving out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub enum Cipher {
    #[serde(rename = "ECDHE-ECDSA-AES128-GCM-SHA256")]
    EcdsaAes128,
    #[serde(rename = "ECDHE-RSA-AES128-GCM-SHA256")]
    RsaAes128,
    #[serde(rename = "ECDHE-ECDSA-AES256-GCM-SHA384")]
    EcdsaAes256,
    #[serde(rename = "ECDHE-RSA-AES256-GCM-SHA384")]
    RsaAes256,
    #[serde(rename = "ECDHE-ECDSA-CHACHA20-POLY1305")]
    EcdsaChacha20,
    #[serde(rename = "ECDHE-RSA-CHACHA20-POLY1305")]
    RsaChacha20,
}

impl Cipher {
    pub const ALL: [Self; 6] = [
        Self::EcdsaAes128,
        Self::RsaAes128,
        Self::EcdsaAes256,
        Self::RsaAes256,
        Self::EcdsaChacha20,
        Self::RsaChacha20,
    ];

    /// The name of OpenSSL.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::EcdsaAes128 => "ECDHE-ECDSA-AES128-GCM-SHA256",
            Self::RsaAes128 => "ECDHE-RSA-AES128-GCM-SHA256",
            Self::EcdsaAes256 => "ECDHE-ECDSA-AES256-GCM-SHA384",
            Self::RsaAes256 => "ECDHE-RSA-AES256-GCM-SHA384",
            Self::EcdsaChacha20 => "ECDHE-ECDSA-CHACHA20-POLY1305",
            Self::RsaChacha20 => "ECDHE-RSA-CHACHA20-POLY1305",
        }
    }

    /// The name of IANA, as rustls has it.
    #[must_use]
    pub fn iana_name(self) -> &'static str {
        match self {
            Self::EcdsaAes128 => "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
            Self::RsaAes128 => "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
            Self::EcdsaAes256 => "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
            Self::RsaAes256 => "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
            Self::EcdsaChacha20 => "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
            Self::RsaChacha20 => "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        }
    }

    /// Whether one word of an OpenSSL cipher list (ciphers(1)) names it, alone or among others.
    fn is_meant_by(self, word: &str) -> bool {
        let is = |part: &str| self.name().split('-').any(|own| own == part);
        match word {
            "ALL" | "DEFAULT" | "HIGH" | "TLSv1.2" | "ECDHE" | "EECDH" | "kECDHE" | "kEECDH" | "ECDH" => true,
            "ECDSA" | "aECDSA" => is("ECDSA"),
            "aRSA" => is("RSA"),
            "AESGCM" | "FIPS" => is("GCM"),
            "SUITEB128" | "SUITEB128C2" => is("ECDSA") && is("GCM"),
            "SUITEB128ONLY" => self == Self::EcdsaAes128,
            "SUITEB192" => self == Self::EcdsaAes256,
            "AES" => is("AES128") || is("AES256"),
            "AES128" | "AES256" | "CHACHA20" => is(word),
            name => name == self.name() || name == self.iana_name(),
        }
    }
}

impl Scalar for Cipher {
    const EXPECTED: &'static str = "a cipher of TLS 1.2 such as `ECDHE-RSA-AES128-GCM-SHA256`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|cipher| text == cipher.name() || text == cipher.iana_name());
        found.ok_or_else(|| {
            if text.starts_with("TLS_") && !text.contains("_WITH_") {
                return format!("`{text}` is of TLS 1.3, whose ciphers are all spoken; take it out");
            }
            if let (Some(meant), _) = from_openssl(text) {
                let meant: Vec<_> = meant.into_iter().map(Self::name).collect();
                return format!("`{text}` is a list of OpenSSL's, which means here: {}", meant.join(", "));
            }
            let near = suggestion(text, Self::ALL.iter().map(|cipher| cipher.name()));
            format!("`{text}` is not spoken here, where every cipher is forward secret and authenticated{near}")
        })
    }

    fn schema() -> Json {
        json!({ "enum": Self::ALL.map(Self::name) })
    }
}

/// What is left of an OpenSSL cipher list (ciphers(1)), and the words in it that add nothing here.
///
/// The order says nothing: ours is the one that is measured to cost the least. `None` where nothing is left.
pub(super) fn from_openssl(list: &str) -> (Option<Vec<Cipher>>, Vec<String>) {
    let mut taken = [false; Cipher::ALL.len()];
    let mut barred = taken;
    let mut useless = Vec::new();
    // What follows an `@` is an order, or a level that all of ours are above.
    let words = list.split([':', ',', ';', ' ', '\t']).map(|word| word.split('@').next().unwrap_or_default());
    let words = words.filter(|word| !word.is_empty());
    for word in words {
        let (operator, word) = match word.as_bytes()[0] {
            operator @ (b'!' | b'-' | b'+') => (Some(operator), &word[1..]),
            _ => (None, word),
        };
        let mut any = false;
        for (place, cipher) in Cipher::ALL.into_iter().enumerate() {
            // `EECDH+AESGCM` is what both words mean.
            if !word.split('+').all(|part| cipher.is_meant_by(part)) {
                continue;
            }
            any = true;
            match operator {
                Some(b'!') => (taken[place], barred[place]) = (false, true),
                Some(b'-') => taken[place] = false,
                // Moves to the end.
                Some(_) => {}
                None => taken[place] = !barred[place],
            }
        }
        // The suites of TLS 1.3 are not chosen by such a list in OpenSSL either.
        if !any && operator.is_none() && !word.starts_with("TLS_") {
            useless.push(word.to_owned());
        }
    }
    let left: Vec<_> =
        Cipher::ALL.into_iter().zip(taken).filter(|(_, taken)| *taken).map(|(cipher, _)| cipher).collect();
    ((!left.is_empty()).then_some(left), useless)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn names(list: &str) -> Vec<&'static str> {
        from_openssl(list).0.unwrap_or_default().into_iter().map(Cipher::name).collect()
    }

    #[test]
    fn lists_mean_what_openssl_takes_them_for_as_far_as_it_is_spoken_here() {
        let all: Vec<_> = Cipher::ALL.into_iter().map(Cipher::name).collect();
        assert_eq!(names("HIGH:!aNULL:!MD5"), all, "docassemble's default");
        assert_eq!(names("HIGH:!aNULL:!MD5;"), all, "as docassemble's documentation has it");
        assert_eq!(names("ALL:!ECDHE"), [""; 0]);
        assert_eq!(names("EECDH+AESGCM:EDH+AESGCM"), all[..4]);
        assert_eq!(names("ECDHE-RSA-AES128-GCM-SHA256:TLS_AES_128_GCM_SHA256"), ["ECDHE-RSA-AES128-GCM-SHA256"]);
        assert_eq!(names("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"), ["ECDHE-RSA-AES128-GCM-SHA256"]);
        assert_eq!(names("HIGH:!CHACHA20:!AES256:@STRENGTH"), all[..2]);
        assert_eq!(
            names("!AES:ALL:-aRSA:+AES"),
            ["ECDHE-ECDSA-CHACHA20-POLY1305"],
            "barred for good, wherever it stands"
        );
        assert_eq!(names("-aRSA:ALL"), all, "taken out before it was in");
    }

    #[test]
    fn openssl_itself_takes_every_list_for_the_same() {
        let mozilla_intermediate = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:\
                                    ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305:\
                                    DHE-RSA-AES128-GCM-SHA256:DHE-RSA-AES256-GCM-SHA384:DHE-RSA-CHACHA20-POLY1305";
        for list in [
            mozilla_intermediate,
            "HIGH:!aNULL:!MD5",
            "HIGH:!aNULL:!kRSA:!PSK:!SRP:!MD5:!RC4",
            "ALL:!ADH:!LOW:!EXP:!MD5:@STRENGTH",
            "DEFAULT",
            "DEFAULT@SECLEVEL=1",
            "DEFAULT:!AES128",
            "@SECLEVEL=2:HIGH",
            "EECDH+AESGCM:EDH+AESGCM:AES256+EECDH:AES256+EDH",
            "ECDHE+CHACHA20:ECDHE+AES256:!aRSA",
            "kEECDH+aECDSA+AES128",
            "ECDSA",
            "aECDSA+AESGCM",
            "RSA+AESGCM:ECDHE-RSA-AES128-GCM-SHA256",
            "aRSA:-AES256:+ECDHE",
            "AESGCM",
            "CHACHA20",
            "SHA256:SHA384:CHACHA20",
            "SUITEB128",
            "SUITEB192",
            "SUITEB128ONLY",
            "FIPS",
            "FIPS:!aRSA",
            "MEDIUM:CHACHA20",
            "TLSv1.2:!AES256",
            "TLSv1.2+aRSA",
            "AEAD",
            "AES+AEAD",
            "ECDH+AESGCM256",
            "AECDH:ADH:CHACHA20",
            "COMPLEMENTOFDEFAULT:CHACHA20",
            "ALL:COMPLEMENTOFALL",
            "AES128:-ALL:HIGH:!CHACHA20",
            "!HIGH:ALL",
            "ALL,!AES256",
            "ALL !AES256",
        ] {
            let printed = Command::new("openssl").args(["ciphers", "-s", "-tls1_2", list]).output();
            let Ok(printed) = printed else {
                assert!(std::env::var_os("CI").is_none(), "openssl is not installed");
                return eprintln!("skipped: openssl is not installed");
            };
            let printed = String::from_utf8(printed.stdout).unwrap();
            let theirs: Vec<_> = printed.trim().split(':').collect();
            let expected: Vec<_> =
                Cipher::ALL.into_iter().map(Cipher::name).filter(|name| theirs.contains(name)).collect();

            assert_eq!(names(list), expected, "{list}");
        }
    }

    #[test]
    fn what_is_no_cipher_of_tls_1_2_is_refused_with_what_to_write() {
        for (text, expected) in [
            (
                "TLS_AES_128_GCM_SHA256",
                "`TLS_AES_128_GCM_SHA256` is of TLS 1.3, whose ciphers are all spoken; take it out",
            ),
            (
                "HIGH:!aNULL:!aRSA:!AES256",
                "`HIGH:!aNULL:!aRSA:!AES256` is a list of OpenSSL's, which means here: ECDHE-ECDSA-AES128-GCM-SHA256, \
                 ECDHE-ECDSA-CHACHA20-POLY1305",
            ),
            (
                "ECDHE-RSA-AES128-GCM-SHA257",
                "`ECDHE-RSA-AES128-GCM-SHA257` is not spoken here, where every cipher is forward secret and authenticated; did \
                 you mean `ECDHE-RSA-AES128-GCM-SHA256`?",
            ),
        ] {
            assert_eq!(Cipher::parse(text, Path::new("/")).unwrap_err(), expected);
        }
    }

    #[test]
    fn every_cipher_of_tls_1_2_that_rustls_has_is_named() {
        let suites = rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES.iter().filter(|suite| suite.tls13().is_none());
        let mut theirs: Vec<_> = suites.filter_map(|suite| suite.suite().as_str()).collect();
        let mut ours = Cipher::ALL.map(Cipher::iana_name);
        theirs.sort_unstable();
        ours.sort_unstable();
        assert_eq!(ours[..], theirs);
    }

    #[test]
    fn what_adds_nothing_is_told() {
        let (left, useless) = from_openssl("ECDHE-RSA-AES128-SHA:aRSA:!3DES DHE:kRSA");
        assert_eq!(left.map(|left| left.len()), Some(3));
        assert_eq!(useless, ["ECDHE-RSA-AES128-SHA", "DHE", "kRSA"]);
        assert_eq!(from_openssl("RC4:MD5"), (None, vec!["RC4".to_owned(), "MD5".to_owned()]));
        assert_eq!(from_openssl(" ; "), (None, vec![]));
        assert_eq!(from_openssl("!:-:+").0, None);
    }
}
