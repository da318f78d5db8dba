//! The `sql!` macro of `pooled-postgres`, where its use is documented.

mod declaration;
mod placeholders;

use proc_macro::TokenStream;

use declaration::Declarations;

/// Declares statements as structs whose fields are the statement's named parameters.
///
/// See `pooled_postgres::sql!`, which re-exports this macro and has examples.
#[proc_macro]
pub fn sql(input: TokenStream) -> TokenStream {
    let expanded = syn::parse::<Declarations>(input).and_then(Declarations::expand);
    expanded
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}
