//! Signatures, key agreement, key derivation, AEAD, hashes.

use keepstep_core::batch::{self, Item};
use keepstep_core::ed25519::{self, PublicKey, SecretKey};
use keepstep_core::{Error, aead, agreement, hash};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffer::{Input, bytes, without_gil};
use crate::error::OrRaise;

#[pyfunction]
pub(crate) fn ed25519_generate<'py>(
    py: Python<'py>,
    seed: Input,
) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
    let secret = seed.secret()?;
    Ok((bytes(py, secret.as_slice()), bytes(py, &ed25519::public(&secret))))
}

#[pyfunction]
pub(crate) fn ed25519_public<'py>(py: Python<'py>, secret: Input) -> PyResult<Bound<'py, PyBytes>> {
    Ok(bytes(py, &ed25519::public(&*secret.secret()?)))
}

#[pyfunction]
pub(crate) fn ed25519_sign<'py>(py: Python<'py>, secret: Input, message: Input) -> PyResult<Bound<'py, PyBytes>> {
    let secret = secret.secret()?;
    let signature = without_gil(py, message.len(), || ed25519::sign(&secret, &message));
    Ok(bytes(py, &signature))
}

#[pyfunction]
pub(crate) fn ed25519_verify(py: Python<'_>, public: Input, message: Input, signature: Input) -> PyResult<()> {
    let verify = || {
        let key = PublicKey::from_bytes(&public).map_err(|_| Error::BadSignature)?;
        key.verify(&[&message], &signature)
    };
    without_gil(py, message.len(), verify).or_raise(py)
}

#[pyfunction]
pub(crate) fn ed25519_verify_many(py: Python<'_>, items: Vec<(Py<DeviceKey>, Input, Input)>) -> Vec<bool> {
    py.detach(|| {
        let items: Vec<_> = items
            .iter()
            .map(|(key, message, signature)| Item { key: &key.get().0, message: [message, &[], &[], &[]], signature })
            .collect();
        batch::verify_many(&items)
    })
}

#[pyfunction]
pub(crate) fn x25519_public<'py>(py: Python<'py>, secret: Input) -> PyResult<Bound<'py, PyBytes>> {
    Ok(bytes(py, &agreement::x25519_public(&*secret.secret()?)))
}

#[pyfunction]
pub(crate) fn x25519<'py>(py: Python<'py>, secret: Input, public: Input) -> PyResult<Bound<'py, PyBytes>> {
    let secret = secret.secret()?;
    let public = (*public).try_into().map_err(|_| Error::Malformed("an X25519 key has 32 bytes")).or_raise(py)?;
    let shared = agreement::x25519(&secret, &public).or_raise(py)?;
    Ok(bytes(py, shared.as_slice()))
}

#[pyfunction]
pub(crate) fn hkdf_sha256<'py>(
    py: Python<'py>,
    salt: Input,
    ikm: Input,
    info: Input,
    length: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    let output = agreement::hkdf_sha256(&salt, &ikm, &info, length).or_raise(py)?;
    Ok(bytes(py, &output))
}

#[pyfunction]
pub(crate) fn hkdf_sha256_expand<'py>(
    py: Python<'py>,
    prk: Input,
    info: Input,
    length: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    let output = agreement::hkdf_sha256_expand(&prk, &info, length).or_raise(py)?;
    Ok(bytes(py, &output))
}

#[pyfunction]
pub(crate) fn aead_seal<'py>(
    py: Python<'py>,
    suite: u64,
    key: Input,
    nonce: Input,
    aad: Input,
    plaintext: Input,
) -> PyResult<Bound<'py, PyBytes>> {
    let (key, nonce) = (key.secret()?, nonce.array("a nonce")?);
    let seal = || aead::Cipher::new(suite, &key)?.seal(&nonce, &aad, &plaintext);
    let sealed = without_gil(py, plaintext.len(), seal).or_raise(py)?;
    Ok(bytes(py, &sealed))
}

#[pyfunction]
pub(crate) fn aead_open<'py>(
    py: Python<'py>,
    suite: u64,
    key: Input,
    nonce: Input,
    aad: Input,
    ciphertext: Input,
) -> PyResult<Bound<'py, PyBytes>> {
    let (key, nonce) = (key.secret()?, nonce.array("a nonce")?);
    let open = || aead::Cipher::new(suite, &key)?.open(&nonce, &aad, &ciphertext);
    let plaintext = without_gil(py, ciphertext.len(), open).or_raise(py)?;
    Ok(bytes(py, &plaintext))
}

#[pyfunction]
pub(crate) fn blake3<'py>(py: Python<'py>, data: Input) -> Bound<'py, PyBytes> {
    let hash = without_gil(py, data.len(), || hash::blake3(&data));
    bytes(py, &hash)
}

#[pyfunction]
pub(crate) fn blake3_derive<'py>(py: Python<'py>, context: &str, data: Input) -> Bound<'py, PyBytes> {
    let hash = without_gil(py, data.len(), || hash::derive(context, &data));
    bytes(py, &hash)
}

#[pyfunction]
pub(crate) fn constant_time_equal(a: Input, b: Input) -> bool {
    hash::constant_time_equal(&a, &b)
}

/// An Ed25519 secret key, expanded once.
#[pyclass(frozen, module = "keepstep._keepstep")]
pub(crate) struct SigningKey {
    key: SecretKey,
    public: [u8; 32],
}

#[pymethods]
impl SigningKey {
    #[new]
    fn new(secret: Input) -> PyResult<Self> {
        let key = SecretKey::new(&*secret.secret()?);
        let public = key.public();
        Ok(Self { key, public })
    }

    #[getter]
    fn public<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        bytes(py, &self.public)
    }

    fn sign<'py>(&self, py: Python<'py>, message: Input) -> Bound<'py, PyBytes> {
        let signature = without_gil(py, message.len(), || self.key.sign(&message));
        bytes(py, &signature)
    }
}

/// An Ed25519 public key, checked and decompressed once.
#[pyclass(frozen, module = "keepstep._keepstep")]
pub(crate) struct DeviceKey(pub(crate) PublicKey);

#[pymethods]
impl DeviceKey {
    #[new]
    fn new(py: Python<'_>, public: Input) -> PyResult<Self> {
        PublicKey::from_bytes(&public).map(Self).or_raise(py)
    }

    #[getter]
    fn public<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        bytes(py, self.0.as_bytes())
    }
}
