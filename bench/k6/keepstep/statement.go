package keepstep

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

const (
	statementPrefix = "keepstep/v1/rest-auth\x00"
	keyBytes        = 32
	uuidBytes       = 16
)

// statement is what a device signs:
// prefix ‖ server_key ‖ u16 ‖ origin ‖ user_key ‖ device_id ‖ nonce ‖ u16 ‖ purpose.
func statement(device Device, origin, nonce, purpose string) ([]byte, error) {
	nonceBytes, err := base64.RawURLEncoding.DecodeString(nonce)
	if err != nil {
		return nil, fmt.Errorf("the nonce is not base64url: %w", err)
	}
	server, err := fixed(device.ServerKey, keyBytes)
	if err != nil {
		return nil, err
	}
	user, err := fixed(device.UserID, keyBytes)
	if err != nil {
		return nil, err
	}
	id, err := fixed(strings.ReplaceAll(device.DeviceID, "-", ""), uuidBytes)
	if err != nil {
		return nil, err
	}
	signed := append([]byte(statementPrefix), server...)
	signed = sized(signed, origin)
	signed = append(append(append(signed, user...), id...), nonceBytes...)
	return sized(signed, purpose), nil
}

func fixed(text string, length int) ([]byte, error) {
	decoded, err := hex.DecodeString(text)
	if err != nil || len(decoded) != length {
		return nil, fmt.Errorf("%q is not %d bytes in hexadecimal", text, length)
	}
	return decoded, nil
}

// sized appends text with its length before it, 16 bits, big-endian.
func sized(to []byte, text string) []byte {
	return append(binary.BigEndian.AppendUint16(to, uint16(len(text))), text...)
}
