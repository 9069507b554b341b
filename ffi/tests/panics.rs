//! A panic inside reaches the host as a status: the session is poisoned, the model and all else go on.

#![allow(clippy::undocumented_unsafe_blocks, reason = "every pointer is that of a local")]

mod support;

use std::ffi::CStr;
use std::ptr::{null, null_mut};
use tidbit::guard::inject::panic_at;
use tidbit::message::tidbit_last_error;
use tidbit::model::{tidbit_model_free, tidbit_model_open};
use tidbit::objects::{tidbit_model, tidbit_session};
use tidbit::session_calls::{
    tidbit_session_append, tidbit_session_cancel, tidbit_session_clone, tidbit_session_free, tidbit_session_new,
    tidbit_session_rewind, tidbit_session_score,
};
use tidbit::status::{TIDBIT_INTERNAL, TIDBIT_OK, TIDBIT_POISONED};

fn message() -> String {
    unsafe { CStr::from_ptr(tidbit_last_error(null_mut())) }.to_str().unwrap().into()
}

fn session(model: *const tidbit_model) -> *mut tidbit_session {
    let mut session = null_mut();
    assert_eq!(unsafe { tidbit_session_new(model, null(), &raw mut session) }, TIDBIT_OK, "{}", message());
    session
}

#[test]
fn a_panic_is_a_status() {
    let path = support::gpt2();
    let path = path.to_str().unwrap();
    let mut model = null_mut();
    let mut open = || unsafe { tidbit_model_open(path.as_ptr().cast(), path.len(), null(), &raw mut model) };
    panic_at("model_open");
    assert_eq!(open(), TIDBIT_INTERNAL);
    assert!(message().contains("injected into model_open") && message().contains("guard.rs"), "{}", message());
    assert!(!message().contains('\n'));
    assert_eq!(open(), TIDBIT_OK);
    assert!(!model.is_null());

    let tokens = [1u32, 2, 3];
    for place in ["session", "score"] {
        let (broken, other) = (session(model), session(model));
        panic_at(place);
        let mut total = 7.0;
        let score = |session, total| unsafe { tidbit_session_score(session, tokens.as_ptr(), 3, null_mut(), total) };
        assert_eq!(score(broken, &raw mut total), TIDBIT_INTERNAL);
        assert_eq!(total, 0.0);
        assert!(message().contains("injected"), "{}", message());
        // It can only be freed; cancelling does no harm.
        assert_eq!(score(broken, &raw mut total), TIDBIT_POISONED);
        assert_eq!(unsafe { tidbit_session_append(broken, tokens.as_ptr(), 3) }, TIDBIT_POISONED);
        assert_eq!(unsafe { tidbit_session_rewind(broken, 0) }, TIDBIT_POISONED);
        let mut clone = null_mut();
        assert_eq!(unsafe { tidbit_session_clone(broken, &raw mut clone) }, TIDBIT_POISONED);
        assert!(clone.is_null() && message().contains("only be freed"));
        assert_eq!(unsafe { tidbit_session_cancel(broken) }, TIDBIT_OK);
        assert_eq!(unsafe { tidbit_session_free(broken) }, TIDBIT_OK);
        // Others do not notice.
        assert_eq!(score(other, &raw mut total), TIDBIT_OK);
        assert!(total < 0.0);
        assert_eq!(unsafe { tidbit_session_free(other) }, TIDBIT_OK);
    }
    assert_eq!(unsafe { tidbit_model_free(model) }, TIDBIT_OK);
}
