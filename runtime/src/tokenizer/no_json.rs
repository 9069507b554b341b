//! In place of `json`, in a library that was built without it.

use crate::error::TokenizerError;

/// There are none.
pub(super) enum Json {}

impl Json {
    pub(super) fn read(_json: &[u8]) -> Result<Self, TokenizerError> {
        let supported = "tables, as this library was built without `json-tokenizer`";
        Err(TokenizerError::Unsupported { field: "form", found: "JSON".into(), supported })
    }

    pub(super) fn n_tokens(&self) -> usize {
        match *self {}
    }

    pub(super) fn highest(&self) -> Option<(String, u32)> {
        match *self {}
    }

    pub(super) fn is_special(&self, _id: u32) -> bool {
        match *self {}
    }

    pub(super) fn encode(&self, _text: &str) -> Result<Vec<u32>, TokenizerError> {
        match *self {}
    }

    pub(super) fn encode_whole(&self, _text: &str) -> Result<Vec<u32>, TokenizerError> {
        match *self {}
    }

    pub(super) fn prefix(&self) -> &[u32] {
        match *self {}
    }

    pub(super) fn adds_space(&self) -> bool {
        match *self {}
    }

    pub(super) fn push_bytes(&self, _id: u32, _out: &mut Vec<u8>) {
        match *self {}
    }
}
