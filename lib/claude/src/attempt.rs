//! Attempts that ended without a reply.

/// An attempt without a reply that the provider may bill all the same: it has the request, and did not refuse it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The model that was asked, whose prices apply.
    pub model: String,
    /// The label of the key that pays.
    pub key_label: String,
}
