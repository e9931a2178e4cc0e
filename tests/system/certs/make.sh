#!/bin/sh
# Makes the certificates that the tests use, anew, for a hundred years. Nothing else trusts them.
set -eu
cd "$(dirname "$0")"
rm -f -- *.crt *.key

authority() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 \
        -keyout "$1.key" -out "$1.crt" -subj "/CN=$1" 2>/dev/null
}

# name, common name, alternative names, authority
certificate() {
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
        -keyout "$1.key" -out "$1.csr" -subj "/CN=$2" 2>/dev/null
    printf 'subjectAltName=%s\nbasicConstraints=CA:FALSE\n' "$3" >"$1.ext"
    openssl x509 -req -in "$1.csr" -CA "$4.crt" -CAkey "$4.key" -CAcreateserial -days 36500 \
        -extfile "$1.ext" -out "$1.crt" 2>/dev/null
    rm -- "$1.csr" "$1.ext"
}

authority authority
authority stranger
certificate server localhost DNS:localhost,IP:127.0.0.1 authority
certificate elsewhere elsewhere.example DNS:elsewhere.example authority
certificate app app DNS:app authority
certificate other other DNS:other authority
certificate fake app DNS:app stranger
rm -f -- *.srl authority.key stranger.key
