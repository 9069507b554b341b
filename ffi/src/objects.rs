//! The kinds of objects that handles stand for, and the one table of them.

use crate::handles::{Held, Table};
use crate::model::OpenModel;
use crate::options::Options;
use crate::session::Session;
use crate::status::{Failure, Outcome, TIDBIT_INVALID_HANDLE};
use crate::tokenizer::Decoder;
use std::marker::PhantomData;
use std::ops::Deref;

/// What a handle stands for.
pub(crate) enum Object {
    Options(Box<Options>),
    Model(Box<OpenModel>),
    Decoder(Box<Decoder>),
    Session(Box<Session>),
}

static TABLE: Table<Object> = Table::new();

/// A kind of object. The host's type for it is a pointer to `Opaque`.
pub(crate) trait Kind: Sized {
    /// What C calls it.
    type Opaque;
    /// For messages, with its article.
    const NAME: &'static str;
    /// It, if the object is of this kind.
    fn of(object: &Object) -> Option<&Self>;
    /// As an object.
    fn object(self) -> Object;
}

/// Settings by key, for opening models, making sessions and sampling.
pub struct tidbit_options {
    _private: [u8; 0],
}

/// An opened model: immutable, shared by any number of threads and sessions.
pub struct tidbit_model {
    _private: [u8; 0],
}

/// Token ids to text, as they come.
pub struct tidbit_decoder {
    _private: [u8; 0],
}

/// One text in progress.
pub struct tidbit_session {
    _private: [u8; 0],
}

macro_rules! kinds {
    ($($variant:ident($kind:ty) as $opaque:ty, $name:literal;)*) => {$(
        impl Kind for $kind {
            type Opaque = $opaque;
            const NAME: &'static str = $name;
            fn of(object: &Object) -> Option<&Self> {
                if let Object::$variant(it) = object { Some(it) } else { None }
            }
            fn object(self) -> Object {
                Object::$variant(Box::new(self))
            }
        }
    )*};
}

kinds! {
    Options(Options) as tidbit_options, "options";
    Model(OpenModel) as tidbit_model, "a model";
    Decoder(Decoder) as tidbit_decoder, "a decoder";
    Session(Session) as tidbit_session, "a session";
}

/// An object of a known kind, in use.
pub(crate) struct Ref<K> {
    held: Held<'static, Object>,
    kind: PhantomData<K>,
}

impl<K: Kind> Deref for Ref<K> {
    type Target = K;
    fn deref(&self) -> &K {
        K::of(&self.held).expect("the kind was checked")
    }
}

/// Makes a handle for `it`.
pub(crate) fn insert<K: Kind>(it: K) -> Outcome<*mut K::Opaque> {
    let handle = TABLE.insert(Box::new(it.object()))?;
    // No address: it is looked up, never followed.
    Ok(std::ptr::without_provenance_mut(handle))
}

/// What a handle stands for.
pub(crate) fn get<K: Kind>(handle: *const K::Opaque) -> Outcome<Ref<K>> {
    let held = TABLE.get(handle.addr(), K::NAME)?;
    check_kind::<K>(&held)?;
    Ok(Ref { held, kind: PhantomData })
}

/// The same of any kind.
pub(crate) fn get_any(handle: usize) -> Outcome<Held<'static, Object>> {
    TABLE.get(handle, "anything")
}

/// The same in a signal handler, where it may neither allocate nor free.
pub(crate) fn get_in_signal<K: Kind>(handle: *const K::Opaque) -> Option<Ref<K>> {
    let held = TABLE.get_in_signal(handle.addr())?;
    K::of(&held).is_some().then_some(Ref { held, kind: PhantomData })
}

/// Frees a handle; null is none. `before` sees the object first.
pub(crate) fn free<K: Kind>(handle: *const K::Opaque, before: impl FnOnce(&K)) -> Outcome {
    if handle.is_null() {
        return Ok(());
    }
    before(&*get::<K>(handle)?);
    if TABLE.remove(handle.addr()) {
        return Ok(());
    }
    // Another thread was faster.
    Err(Failure::new(TIDBIT_INVALID_HANDLE, format!("the handle of {} was freed before", K::NAME)))
}

fn check_kind<K: Kind>(object: &Object) -> Outcome {
    if K::of(object).is_some() {
        return Ok(());
    }
    let found = match object {
        Object::Options(_) => Options::NAME,
        Object::Model(_) => OpenModel::NAME,
        Object::Decoder(_) => Decoder::NAME,
        Object::Session(_) => Session::NAME,
    };
    Err(Failure::new(TIDBIT_INVALID_HANDLE, format!("expected {}, found {found}", K::NAME)))
}
