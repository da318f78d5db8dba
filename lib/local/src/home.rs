//! The page at `/`, until there is a web client in `public/`.

use axum::response::Html;

const TEMPLATE: &str = include_str!("home.html");

/// The fake vendors that run, for the page to describe.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FakeVendors {
    pub(crate) claude: bool,
    pub(crate) stripe: bool,
    pub(crate) mail: bool,
}

/// The page of a development server on `port`.
pub(crate) fn page(port: u16, fakes: FakeVendors) -> Html<String> {
    let page = TEMPLATE
        .replace("{{url}}", &format!("http://localhost:{port}"))
        .replace("{{vendors}}", &vendors(fakes))
        .replace("{{fake_pages}}", &links(fakes));

    Html(page)
}

fn vendors(fakes: FakeVendors) -> String {
    let claude = match fakes.claude {
        true => "A fake Claude answers, and costs nothing",
        false => "The real Claude answers, and costs money",
    };
    let stripe = match fakes.stripe {
        true => "payments are fake",
        false => "payments go to Stripe",
    };
    let mail = match fakes.mail {
        true => "no mail leaves this machine",
        false => "mail is sent",
    };

    format!("{claude}; {stripe}; {mail}.")
}

fn links(fakes: FakeVendors) -> String {
    let stripe = fakes.stripe.then_some((
        "/local/stripe",
        "the fake Stripe: customers, payments, periods and events",
    ));
    let mail = fakes
        .mail
        .then_some(("/local/mail", "mail that was written"));

    stripe
        .into_iter()
        .chain(mail)
        .map(|(path, about)| {
            format!("      <dt><a href=\"{path}\">{path}</a></dt><dd>{about}</dd>\n")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_links_to_the_fake_vendors_that_run() {
        let fakes = FakeVendors {
            claude: true,
            stripe: true,
            mail: false,
        };
        let Html(page) = page(3210, fakes);

        assert!(page.contains("curl http://localhost:3210/api/icons"));
        assert!(page.contains("href=\"/local/stripe\""));
        assert!(!page.contains("href=\"/local/mail\""));
        assert!(!page.contains("{{"), "every placeholder is filled");
    }
}
