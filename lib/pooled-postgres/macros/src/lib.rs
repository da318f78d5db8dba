//! The `sql!` macro of `pooled-postgres`.

mod declaration;
mod lexer;
mod placeholders;

use proc_macro::TokenStream;

use declaration::Declarations;

/// Declares statements as structs whose fields are the statement's named parameters.
///
/// `pooled_postgres` re-exports this macro and documents it.
#[proc_macro]
pub fn sql(input: TokenStream) -> TokenStream {
    let expanded = syn::parse::<Declarations>(input).and_then(Declarations::expand);
    expanded
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}
