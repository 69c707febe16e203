//! Objects that others keep for us: sealed with AES-256-GCM, each under its own key of the storage.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    hkdf::{HKDF_SHA256, Salt},
};

use crate::tls::SecretBytes;

/// Seals and opens objects. Nonces are random: they may come twice after 2³² objects, which are never written.
pub(super) struct Seal(RandomizedNonceKey);

impl Seal {
    /// `key` is what [`derived`] answers.
    pub(super) fn new(key: &SecretBytes) -> Option<Self> {
        RandomizedNonceKey::new(&AES_256_GCM, key.expose()).ok().map(Self)
    }

    /// `plain` as it is kept under `key`: no other key can be given it.
    pub(super) fn seal(&self, key: &str, plain: &SecretBytes) -> Option<Vec<u8>> {
        let mut content = Vec::with_capacity(OVERHEAD + plain.expose().len());
        content.extend_from_slice(plain.expose());
        let nonce = self.0.seal_in_place_append_tag(Aad::from(key.as_bytes()), &mut content).ok()?;
        Some([FORM, nonce.as_ref(), &content].concat())
    }

    pub(super) fn open(&self, key: &str, sealed: &[u8]) -> Option<SecretBytes> {
        let (nonce, content) = sealed.strip_prefix(FORM)?.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut content = content.to_vec();
        let length = self.0.open_in_place(nonce, Aad::from(key.as_bytes()), &mut content).ok()?.len();
        content.truncate(length);
        Some(SecretBytes::new(content))
    }
}

/// A key for `purpose` out of `secret`: it says nothing of the secret, nor of keys for other purposes (RFC 5869).
pub(crate) fn derived(secret: &SecretBytes, purpose: &str) -> SecretBytes {
    let mut key = vec![0; KEY];
    let purpose = [purpose.as_bytes()];
    let prk = Salt::new(HKDF_SHA256, SALT).extract(secret.expose());
    prk.expand(&purpose, HKDF_SHA256)
        .and_then(|expanded| expanded.fill(&mut key))
        .expect("a key is as long as the digest that it is made of");
    SecretBytes::new(key)
}

/// What a sealed object begins with.
const FORM: &[u8] = b"vestibule\x01";
const TAG: usize = 16;
/// What sealing adds to an object.
pub(super) const OVERHEAD: usize = FORM.len() + NONCE_LEN + TAG;
const KEY: usize = 32;
const SALT: &[u8] = b"vestibule";

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &[u8]) -> SecretBytes {
        SecretBytes::new(text.to_vec())
    }

    fn seal(secret: &[u8]) -> Seal {
        Seal::new(&derived(&bytes(secret), "objects")).unwrap()
    }

    #[test]
    fn what_is_sealed_is_opened_under_its_key_with_its_secret_and_not_otherwise() {
        let sealed = seal(b"secret").seal("a/key.pem", &bytes(b"PRIVATE")).unwrap();

        assert_eq!(sealed.len(), OVERHEAD + 7);
        assert!(!sealed.windows(7).any(|part| part == b"PRIVATE"));
        assert_eq!(seal(b"secret").open("a/key.pem", &sealed).unwrap().expose(), b"PRIVATE");
        assert!(seal(b"secret").open("b/key.pem", &sealed).is_none(), "under another key");
        assert!(seal(b"other").open("a/key.pem", &sealed).is_none(), "with another secret");
        assert_ne!(seal(b"secret").seal("a/key.pem", &bytes(b"PRIVATE")).unwrap(), sealed, "each time another nonce");
    }

    #[test]
    fn what_was_touched_or_cut_is_none() {
        let sealed = seal(b"secret").seal("k", &bytes(b"PRIVATE")).unwrap();
        for position in 0..sealed.len() {
            let mut touched = sealed.clone();
            touched[position] ^= 1;
            assert!(seal(b"secret").open("k", &touched).is_none(), "{position}");
            assert!(seal(b"secret").open("k", &sealed[..position]).is_none(), "{position}");
        }
    }

    #[test]
    fn another_purpose_is_another_key() {
        assert_ne!(derived(&bytes(b"secret"), "a").expose(), derived(&bytes(b"secret"), "b").expose());
        assert_eq!(derived(&bytes(b"secret"), "a").expose(), derived(&bytes(b"secret"), "a").expose());
    }
}
