// An application on the TypeScript SDK, version 1 or 2 (the first argument).
//
// `tests/it/sdk/client.rs` starts it and speaks to it by lines: first a JSON
// object with `url`, `client_id`, `tokens` and `is_patient`, then `call N` for N
// calls of a tool at once. Each line is answered by one with the `outcomes`, the
// URLs of all `logins` that were asked for, and the `tokens` as they are stored.

import { createInterface } from 'node:readline';

const { Client, StreamableHTTPClientTransport } = await sdk(process.argv[2]);

async function main() {
    const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
    const login = new StoredLogin(JSON.parse((await lines.next()).value));
    let client;
    for await (const line of lines) {
        const count = Number(line.split(' ')[1]);
        let outcomes;
        try {
            client ??= await connect(login);
            outcomes = await Promise.all(Array.from({ length: count }, () => call(client)));
        } catch (error) {
            outcomes = Array.from({ length: count }, () => told(error));
        }
        const { logins, saved: tokens } = login;
        console.log(JSON.stringify({ outcomes, logins, tokens }));
    }
    process.exit();
}

async function connect(login) {
    const client = new Client({ name: 'typescript', version: '1.0.0' });
    const transport = new StreamableHTTPClientTransport(new URL(login.url), {
        authProvider: login,
        fetch: login.isPatient ? patientFetch : undefined,
    });
    await client.connect(transport);
    return client;
}

async function call(client) {
    try {
        const result = await client.callTool({ name: 'whoami', arguments: {} });
        return `ok ${result.content[0].text}`;
    } catch (error) {
        return told(error);
    }
}

// Without the message's second line: a server's page may follow.
function told(error) {
    return `error ${error.constructor.name}: ${error.message}`.split('\n')[0];
}

// What an application keeps of a login; implements OAuthClientProvider.
class StoredLogin {
    constructor({ url, client_id, tokens, is_patient }) {
        this.url = url;
        this.client = { client_id, issuer: tokens.issuer };
        this.saved = tokens;
        this.isPatient = is_patient;
        this.logins = [];
    }

    get redirectUrl() {
        return 'http://127.0.0.1:9/callback';
    }

    get clientMetadata() {
        return { client_name: 'typescript', redirect_uris: [this.redirectUrl] };
    }

    clientInformation() {
        return this.client;
    }

    saveClientInformation(client) {
        this.client = client;
    }

    tokens() {
        return this.saved ?? undefined;
    }

    saveTokens(tokens) {
        this.saved = tokens;
    }

    saveCodeVerifier() {}

    codeVerifier() {
        throw new Error('nobody logged in');
    }

    // A browser would open now.
    redirectToAuthorization(url) {
        this.logins.push(url.href);
    }

    invalidateCredentials(what) {
        if (what === 'all' || what === 'tokens') {
            this.saved = null;
        }
        if (what === 'all' || what === 'client') {
            this.client = undefined;
        }
    }
}

// The SDK takes a token request that got no answer for the end of the login
// and opens a browser. An application can spare its user that: the gateway
// answers the same refresh token with the same pair, so it can be sent again.
async function patientFetch(url, init) {
    const isRefresh =
        init?.method === 'POST' &&
        init.body instanceof URLSearchParams &&
        init.body.get('grant_type') === 'refresh_token';
    for (let attempt = 1; ; attempt += 1) {
        try {
            return await fetch(url, init);
        } catch (error) {
            if (!isRefresh || attempt === 3 || init.signal?.aborted) {
                throw error;
            }
        }
    }
}

// From where `tests/sdk/run` installed it: this file lies elsewhere.
async function sdk(version) {
    const { createRequire } = await import('node:module');
    const { pathToFileURL } = await import('node:url');
    const require = createRequire(`${process.env.SDK_MODULES}/package.json`);
    const load = async name => import(pathToFileURL(require.resolve(name)));
    if (version === '2') {
        return load('@modelcontextprotocol/client');
    }
    return {
        ...(await load('@modelcontextprotocol/sdk/client/index.js')),
        ...(await load('@modelcontextprotocol/sdk/client/streamableHttp.js')),
    };
}

await main();
